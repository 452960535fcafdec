// Projection playground: drag a point around a manifold and see where the exact projection and each trained
// autoencoder send it. Chapters 1 to 5. With the option "budget" (chapter 5) the point is a normal sample whose second
// coordinate a defect has changed, and each map is charged for what it changes.

import { chooser, once } from "./choices.js";
import { alarm, announcer, button, draggable, fixed, h, latest, modified, segmented, select, set, slider, svg } from "./frame.js";
import { crossings, nearestOnCurve } from "./geometry.js";

const METHODS = {
  exact: "Exact projection",
  ae: "Plain (AE)",
  pca: "Linear (PCA)",
  bottleneck: "Bottleneck, code of 1",
  wide: "Over-complete, code of 16",
  sparse: "Sparse, code of 16",
  cae: "Contractive (CAE)",
  rcae: "Reconstruction-contractive (RCAE)",
  dae: "Denoising (DAE)",
  masked: "Masked",
};
const SIZE = 480;
const GRID = 21;

export async function mount(root, context) {
  const { options } = context;
  const manifolds = Object.entries(context.payload.settings.manifolds);
  const shown = options.methods ?? ["exact", ...Object.keys(context.payload.models)];
  const state = {
    manifold: options.manifold ?? context.payload.settings.manifold,
    point: null,
    on: new Set(options.on ?? shown),
    field: options.field ?? "none",
    steps: 1,
  };
  let scene = null;

  // The drawing, back to front.
  const extent = () => scene.extent;
  const toX = (x) => ((x / extent() + 1) * SIZE) / 2;
  const toY = (y) => ((1 - y / extent()) * SIZE) / 2;
  const axes = svg("path", { class: "pp-axes", d: `M${SIZE / 2} 0V${SIZE}M0 ${SIZE / 2}H${SIZE}` });
  const field = svg("path", { class: "pp-field" });
  const dots = svg("path", { class: "pp-samples" });
  const disc = svg("circle", { class: "pp-disc" });
  const defect = svg("path", { class: "pp-defect" });
  const source = svg("circle", { class: "pp-source", r: 7 });
  const curve = svg("path", { class: "pp-curve" });
  const arrows = new Map(
    shown.map((key) => [
      key,
      {
        line: svg("path", { class: `pp-arrow lf-${key}` }),
        head: svg("path", { class: `pp-head lf-${key}` }),
      },
    ]),
  );
  const handle = svg(
    "g",
    {
      class: "pp-handle",
      tabindex: "0",
      role: "slider",
      "aria-label": "Point. Drag it, or move it with the arrow keys; with Shift in larger steps.",
      "aria-valuemin": "-2",
      "aria-valuemax": "2",
      "aria-valuenow": "0",
      onkeydown: onKey,
    },
    svg("circle", { class: "pp-halo", r: 22 }),
    svg("circle", { class: "pp-point", r: 8 }),
  );
  const plot = svg(
    "svg",
    { class: "pp-plot", viewBox: `0 0 ${SIZE} ${SIZE}`, role: "group", "aria-label": "Plane with the manifold and a movable point" },
    axes,
    options.budget ? disc : null,
    field,
    dots,
    curve,
    ...(options.budget ? [defect, source] : []),
    ...[...arrows.values()].flatMap(({ line, head }) => [line, head]),
    handle,
  );
  draggable(plot, (event) => {
    const box = plot.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * 2 - 1;
    const y = 1 - ((event.clientY - box.top) / box.height) * 2;
    movePoint(x * extent(), y * extent());
    handle.focus({ preventScroll: true });
  });

  // The table doubles as legend and switchboard.
  const cells = new Map();
  const columns = options.budget
    ? [["inside", "in S"], ["clean", "clean part"], ["budget", "of budget"]]
    : [["moved", "moves by"], ["error", "off target"]];
  const rows = shown.map((key) => {
    const row = Object.fromEntries(columns.map(([name]) => [name, h("td", { "data-readout": `${name}-${key}` }, "–")]));
    cells.set(key, row);
    const box = h("input", {
      type: "checkbox",
      checked: state.on.has(key),
      onchange: () => {
        if (box.checked) state.on.add(key);
        else state.on.delete(key);
        update();
      },
    });
    return h(
      "tr",
      { class: `lf-${key}` },
      h("th", { scope: "row" }, h("label", {}, box, h("span", { class: "lf-swatch" }), METHODS[key] ?? key)),
      ...Object.values(row),
    );
  });
  const table = h(
    "table",
    { class: "lf-table" },
    h(
      "caption",
      { class: "lf-visually-hidden" },
      options.budget
        ? "Squared change by each map in the corrupted coordinate and in the clean one, and their share of the energy of the defect"
        : "How far each map moves the point, and how far it ends from the exact projection",
    ),
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Map"), ...columns.map(([, title]) => h("th", { scope: "col" }, title)))),
    h("tbody", {}, ...rows),
  );
  const distance = h("dd", { "data-readout": "distance" }, "–");
  const position = h("dd", { "data-readout": "position" }, "–");
  const energy = h("dd", { "data-readout": "energy" }, "–");
  const voice = announcer();
  const trouble = alarm();
  const choose = chooser({
    load: once(async (key) => (key === context.payload.settings.manifold ? context : context.part(key))),
    show: showManifold,
    back: (key) => choice.set(key),
    trouble,
  });
  const choice = manifolds.length > 1 && !options.manifold ? segmented("Manifold", manifolds, state.manifold, choose) : null;
  const panel = h(
    "div",
    { class: "lf-panel" },
    choice,
    trouble,
    h(
      "dl",
      { class: "lf-readouts" },
      h("div", {}, h("dt", {}, "Distance to the manifold"), distance),
      h("div", {}, h("dt", {}, "Point"), position),
      options.budget ? h("div", {}, h("dt", {}, "Energy of the defect"), energy) : null,
    ),
    table,
    h(
      "div",
      { class: "lf-row" },
      select(
        "Arrows everywhere for",
        [["none", "no map"], ...shown.map((key) => [key, METHODS[key]])],
        state.field,
        (key) => {
          state.field = key;
          drawField();
        },
      ),
      slider("Apply the map", { min: 1, max: 10, step: 1, value: 1, format: (n) => (n === 1 ? "once" : `${n} times`), name: "steps" }, (n) => {
        state.steps = n;
        update();
      }),
    ),
    button("Start over", () => reset()),
    voice,
  );
  root.append(h("div", { class: "lf-split" }, plot, panel));

  async function showManifold(key, part) {
    state.manifold = key;
    scene = {
      extent: part.payload.settings.extent,
      curve: part.payload.arrays.curve.values,
      closed: part.payload.settings.closed,
      samples: part.payload.arrays.samples.values,
      start: part.payload.settings.start,
      predict: part.predict,
      range: rangeOf(part.payload.arrays.curve.values),
    };
    set(curve, { d: polyline(scene.curve, scene.closed) });
    set(dots, { d: specks(scene.samples) });
    set(handle, { "aria-valuemin": -extent(), "aria-valuemax": extent() });
    reset();
    await drawField();
  }

  function reset() {
    movePoint(...scene.start);
  }

  function onKey(event) {
    if (modified(event)) return;
    const step = (event.shiftKey ? 10 : 1) * 0.02 * extent();
    const move = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, step], ArrowDown: [0, -step], Home: null }[event.key];
    if (move === undefined) return;
    event.preventDefault();
    if (move) movePoint(state.point[0] + move[0], state.point[1] + move[1]);
    else reset();
  }

  function movePoint(x, y) {
    const limit = 0.97 * extent();
    state.point = [x, y].map((value) => Math.max(-limit, Math.min(limit, value)));
    // The clean coordinate is that of a normal sample.
    if (options.budget) state.point[0] = Math.max(scene.range[0], Math.min(scene.range[1], state.point[0]));
    update();
  }

  /** One step of a map on a batch of points. */
  const apply = (key, points) =>
    key === "exact" ? nearestOnCurve(scene.curve, points, scene.closed) : scene.predict(key, points);

  const update = latest(async () => {
    const { point } = state;
    const current = scene;
    const start = Float32Array.from(point);
    // The point follows at once; the maps may take their time, when a kernel answers.
    set(handle, {
      transform: `translate(${toX(point[0])} ${toY(point[1])})`,
      "aria-valuenow": point[0].toFixed(2),
      "aria-valuetext": `x ${fixed(point[0], 2)}, y ${fixed(point[1], 2)}`,
    });
    const target = nearestOnCurve(current.curve, start, current.closed);
    const paths = await Promise.all(
      shown.map(async (key) => {
        const path = [start];
        for (let step = 0; step < state.steps; step += 1) path.push(await apply(key, path.at(-1)));
        return path;
      }),
    );
    if (current !== scene) return;
    const away = Math.hypot(point[0] - target[0], point[1] - target[1]);
    distance.textContent = fixed(away);
    position.textContent = `${fixed(point[0], 2)}, ${fixed(point[1], 2)}`;
    const spoken = [`Distance to the manifold ${fixed(away, 2)}.`];
    const spent = options.budget ? drawDefect(point) : null;
    shown.forEach((key, index) => {
      const path = paths[index];
      const end = path.at(-1);
      const cell = cells.get(key);
      drawArrow(arrows.get(key), path, state.on.has(key));
      if (spent !== null) {
        const [clean, inside] = [(end[0] - point[0]) ** 2, (end[1] - point[1]) ** 2];
        const share = spent > 1e-6 ? `${Math.round((100 * (clean + inside)) / spent)} %` : "–";
        cell.inside.textContent = fixed(inside);
        cell.clean.textContent = fixed(clean);
        cell.budget.textContent = share;
        // The theorem holds exactly; what is compared here has been rounded to float32.
        cell.budget.dataset.over = clean + inside > spent + 1e-5;
        if (state.on.has(key)) spoken.push(`${METHODS[key]} uses ${share} of the budget.`);
        return;
      }
      const moved = Math.hypot(end[0] - point[0], end[1] - point[1]);
      const off = Math.hypot(end[0] - target[0], end[1] - target[1]);
      cell.moved.textContent = fixed(moved);
      cell.error.textContent = fixed(off);
      if (state.on.has(key)) spoken.push(`${METHODS[key]} moves by ${fixed(moved, 2)}.`);
    });
    voice.say(spoken.join(" "));
  });

  /** The source, the defect and the disc in which the projection has to end; gives the energy of the defect. */
  function drawDefect([x, y]) {
    const heights = crossings(scene.curve, x, scene.closed);
    const height = heights.reduce((best, here) => (Math.abs(here - y) < Math.abs(best - y) ? here : best), heights[0]);
    set(source, { cx: toX(x), cy: toY(height) });
    set(defect, { d: `M${r(toX(x))} ${r(toY(height))}V${r(toY(y))}` });
    set(disc, { cx: toX(x), cy: toY(y), r: Math.abs(toY(height) - toY(y)) });
    energy.textContent = fixed((height - y) ** 2);
    return (height - y) ** 2;
  }

  function drawArrow({ line, head }, path, visible) {
    const pixels = path.map(([x, y]) => [toX(x), toY(y)]);
    const [tip, before] = [pixels.at(-1), pixels.findLast((p) => Math.hypot(p[0] - pixels.at(-1)[0], p[1] - pixels.at(-1)[1]) > 7)];
    const between = pixels.slice(1, -1).map(([x, y]) => `M${x - 2} ${y}a2 2 0 1 0 4 0a2 2 0 1 0 -4 0`);
    set(line, { d: visible ? `M${pixels.map((p) => p.join(" ")).join("L")}` : "" });
    // A move too short for an arrow head ends in a ring: "stays here".
    set(head, { d: visible ? (before ? triangle(before, tip) : ring(tip)) + between.join("") : "" });
  }

  async function drawField() {
    const key = state.field;
    const current = scene;
    set(field, { d: "", class: `pp-field lf-${key}` });
    if (key === "none") return;
    const points = new Float32Array(2 * GRID * GRID);
    for (let i = 0; i < GRID * GRID; i += 1) {
      points[2 * i] = extent() * (((i % GRID) + 0.5) * (2 / GRID) - 1);
      points[2 * i + 1] = extent() * ((Math.floor(i / GRID) + 0.5) * (2 / GRID) - 1);
    }
    const images = await apply(key, points);
    if (current !== scene || key !== state.field) return;
    const longest = (0.85 * SIZE) / GRID;
    let d = "";
    for (let i = 0; i < points.length; i += 2) {
      const [x, y] = [toX(points[i]), toY(points[i + 1])];
      const [dx, dy] = [toX(images[i]) - x, toY(images[i + 1]) - y];
      const length = Math.hypot(dx, dy);
      // Arrows must not overlap, so long ones are compressed; short ones stay true to scale.
      const drawn = longest * Math.tanh(length / (3 * longest));
      const [ux, uy] = length > 1e-6 ? [dx / length, dy / length] : [0, 0];
      const [ex, ey] = [x + ux * drawn, y + uy * drawn];
      const barb = Math.min(4, drawn / 2);
      d += `M${r(x)} ${r(y)}L${r(ex)} ${r(ey)}`;
      d += `M${r(ex - barb * (ux + 0.6 * uy))} ${r(ey - barb * (uy - 0.6 * ux))}L${r(ex)} ${r(ey)}`;
      d += `L${r(ex - barb * (ux - 0.6 * uy))} ${r(ey - barb * (uy + 0.6 * ux))}`;
    }
    set(field, { d });
  }

  function polyline(values, closed) {
    let d = "";
    for (let i = 0; i < values.length; i += 2) d += `${i ? "L" : "M"}${r(toX(values[i]))} ${r(toY(values[i + 1]))}`;
    return closed ? `${d}Z` : d;
  }

  function specks(values) {
    let d = "";
    for (let i = 0; i < values.length; i += 2) d += `M${r(toX(values[i]))} ${r(toY(values[i + 1]))}h0`;
    return d;
  }

  await choose(state.manifold);
}

/** Least and greatest first coordinate of a curve, drawn in a little so that a vertical line there still meets it. */
function rangeOf(curve) {
  const across = curve.filter((_, i) => i % 2 === 0);
  const [low, high] = [Math.min(...across), Math.max(...across)];
  return [low + 1e-3 * (high - low), high - 1e-3 * (high - low)];
}

const r = (value) => Math.round(10 * value) / 10;

function triangle([x0, y0], [x1, y1]) {
  const length = Math.hypot(x1 - x0, y1 - y0);
  const [ux, uy] = [(x1 - x0) / length, (y1 - y0) / length];
  const size = 11;
  const [bx, by] = [x1 - size * ux, y1 - size * uy];
  const half = 0.45 * size;
  return `M${r(x1)} ${r(y1)}L${r(bx + half * uy)} ${r(by - half * ux)}L${r(bx - half * uy)} ${r(by + half * ux)}Z`;
}

const ring = ([x, y]) => `M${r(x - 12)} ${r(y)}a12 12 0 1 0 24 0a12 12 0 1 0 -24 0M${r(x - 10)} ${r(y)}a10 10 0 1 1 20 0a10 10 0 1 1 -20 0`;
