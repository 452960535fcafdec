// Paint a defect: a real texture under a brush, and what the trained network makes of it while painting.
// Introduction and chapter 10.

import { chooser, once } from "./choices.js";
import { alarm, announcer, button, draggable, h, latest, modified, segmented, select, slider } from "./frame.js";
import { boxFilter, heatMap, inferno, topMean } from "./heat.js";
import { loadStrip, pictures, putImage } from "./images.js";
import { steadyNoise } from "./signals.js";

const COLOURS = { dark: [0.09, 0.08, 0.1], light: [0.95, 0.94, 0.9], red: [0.72, 0.13, 0.12], green: [0.16, 0.42, 0.2] };

const OUTLINE = [0.34, 0.71, 0.91];

export async function mount(root, context) {
  const { payload } = context;
  const textures = Object.entries(payload.settings.textures);
  const state = { texture: payload.settings.texture, tool: "dark", size: 7, threshold: 1, cursor: null, index: 0 };
  let scene = null;

  const left = canvas("The photograph, to paint on with the pointer. With the keyboard: arrow keys move the brush, Space paints.", {
    tabindex: "0",
    role: "application",
  });
  const middle = canvas("What the network makes of it");
  const right = canvas("Heat map: where the network would change the image, with the threshold as an outline");
  const verdict = h("dd", { "data-readout": "verdict", class: "pd-verdict" }, "–");
  const score = h("dd", { "data-readout": "score" }, "–");
  const area = h("dd", { "data-readout": "area" }, "–");
  const time = h("dd", { "data-readout": "milliseconds" }, "–");
  const voice = announcer();
  const sizes = slider("Brush", { min: 2, max: 24, step: 1, value: state.size, format: (v) => `${v} px`, name: "brush" }, (v) => {
    state.size = v;
    drawLeft();
  });
  const limits = slider("Threshold", { min: 0, max: 100, step: 1, value: 50, format: (v) => `${(2 ** ((v - 50) / 12.5)).toFixed(2)} ×`, name: "threshold" }, (v) => {
    state.threshold = 2 ** ((v - 50) / 12.5);
    drawRight();
  });

  const trouble = alarm();
  const partOf = once(async (key) => (key === payload.settings.texture ? context : context.part(key)));
  const choose = chooser({
    // Should only the images fail, the network is there for the next try.
    load: once(async (key) => {
      const part = await partOf(key);
      return { part, images: await loadStrip(part.file("images"), part.payload.settings.side) };
    }),
    show: showTexture,
    back: (key) => choice.set(key),
    trouble,
  });
  const choice = textures.length > 1 ? segmented("Texture", textures, state.texture, choose) : null;

  root.append(
    pictures(["Paint here", left], ["Repaired", middle], ["What it changed", right]),
    h(
      "div",
      { class: "pd-controls" },
      h(
        "div",
        { class: "lf-panel" },
        choice,
        trouble,
        h(
          "div",
          { class: "lf-row" },
          select(
            "Brush paints",
            [["dark", "dark paint"], ["light", "light paint"], ["red", "red paint"], ["green", "green paint"], ["blur", "a blur"], ["erase", "the original back"]],
            state.tool,
            (key) => {
              state.tool = key;
            },
          ),
          sizes,
        ),
        h(
          "div",
          { class: "lf-buttons", role: "group", "aria-label": "Sample defects and images" },
          button("Scratch", () => sample("scratch")),
          button("Spot", () => sample("spot")),
          button("Stain", () => sample("stain")),
          button("Erase all", () => {
            scene.painted.set(scene.images[state.index]);
            repaint();
          }),
          button("Next image", () => {
            state.index = (state.index + 1) % scene.images.length;
            scene.painted = Float32Array.from(scene.images[state.index]);
            repaint();
          }),
        ),
      ),
      h(
        "div",
        { class: "lf-panel" },
        limits,
        h(
          "dl",
          { class: "lf-readouts" },
          h("div", {}, h("dt", {}, "Verdict"), verdict),
          h("div", {}, h("dt", {}, "Score / limit"), score),
          h("div", {}, h("dt", {}, "Area marked"), area),
          h("div", {}, h("dt", {}, "Answer in"), time),
        ),
        voice,
      ),
    ),
  );

  function canvas(label, attributes = {}) {
    return h("canvas", { class: "pd-canvas", role: "img", "aria-label": label, ...attributes });
  }

  async function showTexture(key, { part, images }) {
    const { settings } = part.payload;
    const { side } = settings;
    state.texture = key;
    scene = { side, settings, images, predict: part.predict, answer: null };
    for (const cell of [verdict, score, area, time]) cell.textContent = "–";
    state.index = 0;
    state.cursor = [side / 2, side / 2];
    scene.painted = Float32Array.from(scene.images[0]);
    for (const each of [left, middle, right]) {
      each.width = side;
      each.height = side;
    }
    // The first frame already shows a defect and its heat map.
    stroke([[0.3 * side, 0.34 * side], [0.46 * side, 0.47 * side], [0.66 * side, 0.5 * side]], 4, COLOURS.dark);
    drawLeft();
    await answer();
  }

  /** Lay paint along a line of points. */
  function stroke(points, width, paint) {
    const { side, painted } = scene;
    const plane = side * side;
    const original = scene.images[state.index];
    const [x0, y0, x1, y1] = bounds(points, width, side);
    const blurred = paint === "blur" ? blurOf(painted, side) : null;
    for (let y = y0; y <= y1; y += 1) {
      for (let x = x0; x <= x1; x += 1) {
        // A soft edge of one pixel: no staircase, and no outline to betray the brush.
        const alpha = Math.max(0, Math.min(1, width / 2 + 0.5 - distanceToLine(x + 0.5, y + 0.5, points)));
        if (alpha === 0) continue;
        for (let c = 0; c < 3; c += 1) {
          const i = c * plane + y * side + x;
          const target = paint === "erase" ? original[i] : blurred ? blurred[i] : paint[c] + 0.06 * (original[i] - 0.5);
          painted[i] += alpha * (target - painted[i]);
        }
      }
    }
  }

  function sample(kind) {
    const { side } = scene;
    const seed = (sample.count = (sample.count ?? 0) + 1);
    const draw = steadyNoise(8, 31 * seed).map((v) => Math.max(-1, Math.min(1, v / 2)));
    const x = side * (0.5 + 0.22 * draw[0]);
    const y = side * (0.5 + 0.22 * draw[1]);
    if (kind === "spot") stroke([[x, y]], 11, COLOURS.dark);
    if (kind === "scratch") {
      const [dx, dy] = [side * 0.24 * (0.6 + draw[2] ** 2), side * 0.24 * draw[3]];
      stroke([[x - dx, y - dy], [x + 4 * draw[4], y + 4 * draw[5]], [x + dx, y + dy]], 2.2, COLOURS.light);
    }
    if (kind === "stain") {
      for (let i = 0; i < 7; i += 1) stroke([[x + 9 * draw[i], y + 9 * draw[(i + 3) % 8]]], 10 + 5 * draw[(i + 5) % 8], COLOURS.red);
    }
    repaint();
  }

  let last = null;
  const within = (value) => Math.max(0, Math.min(scene.side, value));
  const place = (event) => {
    const box = left.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * scene.side, ((event.clientY - box.top) / box.height) * scene.side];
  };
  draggable(left, (event, phase) => {
    const here = place(event);
    brush(last && phase !== "down" ? [last, here] : [here]);
    last = phase === "up" ? null : here;
    state.cursor = here.map(within);
  });

  function brush(points) {
    stroke(points, state.size, COLOURS[state.tool] ?? state.tool);
    repaint();
  }

  left.addEventListener("keydown", (event) => {
    if (modified(event)) return;
    const step = event.shiftKey ? 10 : 2;
    const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
    if (event.key === " " || event.key === "Enter") brush([state.cursor]);
    else if (moves[event.key]) {
      state.cursor = state.cursor.map((v, i) => within(v + moves[event.key][i]));
      const [across, down] = state.cursor.map((v) => Math.round((100 * v) / scene.side));
      voice.say(`Brush ${across} percent across, ${down} percent down.`);
    } else return;
    event.preventDefault();
    drawLeft(true);
  });
  left.addEventListener("focus", () => drawLeft(left.matches(":focus-visible")));
  left.addEventListener("blur", () => drawLeft());

  function repaint() {
    drawLeft(left.matches(":focus-visible"));
    answer();
  }

  const answer = latest(async () => {
    const current = scene;
    const { side, settings, painted } = current;
    // The reader goes on painting while the network works: the answer is to what was there when it was asked.
    const seen = Float32Array.from(painted);
    const begin = performance.now();
    const repaired = await current.predict(settings.model, seen, [1, 3, side, side]);
    // Another texture, or the next photograph.
    if (current !== scene || painted !== current.painted) return;
    const heat = heatMap(seen, repaired, side, settings);
    current.answer = { repaired, heat, milliseconds: performance.now() - begin };
    drawRight();
    // Let the browser paint before the next answer.
    await new Promise((resolve) => requestAnimationFrame(resolve));
  }, context.tells ? null : trouble);

  function drawLeft(withCursor = false) {
    putImage(left, scene.painted, scene.side);
    if (!withCursor) return;
    const pen = left.getContext("2d");
    pen.lineWidth = 1;
    for (const [offset, colour] of [[0, "#fff"], [1, "#000"]]) {
      pen.strokeStyle = colour;
      pen.beginPath();
      pen.arc(...state.cursor, state.size / 2 + offset, 0, 2 * Math.PI);
      pen.stroke();
    }
  }

  function drawRight() {
    if (!scene?.answer) return;
    const { side, settings, answer: { repaired, heat, milliseconds } } = scene;
    const limit = settings.limit * state.threshold;
    const plane = side * side;
    let marked = 0;
    const pixels = new Float32Array(3 * plane);
    for (let i = 0; i < plane; i += 1) {
      const over = heat[i] > limit;
      if (over) marked += 1;
      const [x, y] = [i % side, Math.floor(i / side)];
      const edge = over && (x === 0 || y === 0 || x === side - 1 || y === side - 1 || heat[i - 1] <= limit || heat[i + 1] <= limit || heat[i - side] <= limit || heat[i + side] <= limit);
      // The square root shows faint responses; the limit always lies at the same brightness.
      const colour = inferno(Math.sqrt(heat[i] / (6 * settings.limit)));
      for (let c = 0; c < 3; c += 1) {
        const j = c * plane + i;
        pixels[j] = edge ? OUTLINE[c] : colour[c] / 255;
      }
    }
    putImage(middle, repaired, side);
    putImage(right, pixels, side);
    const total = topMean(heat, settings.top_share) / settings.image_limit;
    verdict.textContent = total > state.threshold ? "defect" : "normal";
    verdict.dataset.verdict = verdict.textContent;
    score.textContent = total.toFixed(2);
    area.textContent = `${((100 * marked) / plane).toFixed(1)} %`;
    time.textContent = `${Math.round(milliseconds)} ms`;
    voice.say(`Verdict: ${verdict.textContent}. ${area.textContent} of the area is marked.`);
  }

  await choose(state.texture);
}

function bounds(points, width, side) {
  const reach = width / 2 + 2;
  const clip = (value) => Math.max(0, Math.min(side - 1, Math.round(value)));
  const [xs, ys] = [points.map((p) => p[0]), points.map((p) => p[1])];
  return [clip(Math.min(...xs) - reach), clip(Math.min(...ys) - reach), clip(Math.max(...xs) + reach), clip(Math.max(...ys) + reach)];
}

function distanceToLine(x, y, points) {
  if (points.length === 1) return Math.hypot(x - points[0][0], y - points[0][1]);
  let best = Infinity;
  for (let i = 1; i < points.length; i += 1) {
    const [[ax, ay], [bx, by]] = [points[i - 1], points[i]];
    const squared = (bx - ax) ** 2 + (by - ay) ** 2;
    const t = squared ? Math.max(0, Math.min(1, ((x - ax) * (bx - ax) + (y - ay) * (by - ay)) / squared)) : 0;
    best = Math.min(best, Math.hypot(x - ax - t * (bx - ax), y - ay - t * (by - ay)));
  }
  return best;
}

function blurOf(image, side) {
  const plane = side * side;
  const out = new Float32Array(image.length);
  for (let c = 0; c < 3; c += 1) out.set(boxFilter(image.subarray(c * plane, (c + 1) * plane), side, 7, 2), c * plane);
  return out;
}
