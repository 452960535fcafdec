// Blind spot: a defect grows in the middle of a cloth, and two networks of one cost repair it. Chapter 8.

import { alarm, announcer, button, draggable, h, latest, select, set, slider, svg } from "./frame.js";
import { canvas, loadStrip, pictures, putImage } from "./images.js";

const CHART = { width: 320, height: 170, top: 1.4 };
// The error is measured on a block of this many pixels in the middle: a single one would say little.
const BLOCK = 4;
const DARK = [0.12, 0.1, 0.13];

export async function mount(root, context) {
  const { settings, arrays } = context.payload;
  const { side, variance, count, fields } = settings;
  const names = Object.keys(settings.models);
  const strip = await loadStrip(context.file("images"), side);
  const [inputs, sources, fills] = [0, 1, 2].map((k) => strip.slice(k * count, (k + 1) * count));
  const state = { hole: settings.start, fill: "texture", index: 0 };

  // A drawing over the first picture: the defect, and what the first network sees of it.
  const field = svg("rect", { class: "bs-field" });
  const edge = svg("rect", { class: "bs-edge" });
  const overlay = svg("svg", { class: "bs-overlay", viewBox: `0 0 ${side} ${side}`, "aria-hidden": "true" }, field, edge);
  const left = canvas("Cloth with a square defect in its middle", side);
  const repairs = names.map((name) => canvas(`Repair by the ${settings.models[name]} network`, side));
  const box = h("div", { class: "bs-picture" }, left, overlay);
  draggable(box, (event) => {
    const frame = box.getBoundingClientRect();
    const away = Math.max(
      Math.abs((event.clientX - frame.left) / frame.width - 0.5),
      Math.abs((event.clientY - frame.top) / frame.height - 0.5),
    );
    grow(2 * Math.round(away * side));
  });

  const size = slider(
    "Side of the defect",
    { min: 0, max: settings.most, step: 2, value: state.hole, format: (v) => `${v} px`, name: "side" },
    (v) => grow(v),
  );
  const cells = new Map(
    names.map((name) => [name, { error: h("td", { "data-readout": `error-${name}` }, "–"), clean: h("td", { "data-readout": `clean-${name}` }, "–") }]),
  );
  const table = h(
    "table",
    { class: "lf-table" },
    h("caption", { class: "lf-visually-hidden" }, "Error in the middle of the defect, and how much clean cloth each network sees from there"),
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Neck"), h("th", { scope: "col" }, "error at the centre"), h("th", { scope: "col" }, "clean in view"))),
    h(
      "tbody",
      {},
      ...names.map((name) =>
        h(
          "tr",
          { class: `bs-${name}` },
          h("th", { scope: "row" }, h("span", { class: `sr-key bs-key-${name}` }, settings.models[name])),
          cells.get(name).error,
          cells.get(name).clean,
        ),
      ),
    ),
  );
  const chart = drawChart();
  const voice = announcer();
  const trouble = alarm();

  root.append(
    pictures(["Defect: drag to grow", box], ...names.map((name, i) => [`Repaired, ${settings.models[name]} neck`, repairs[i]])),
    h(
      "div",
      { class: "pd-controls" },
      h(
        "div",
        { class: "lf-panel" },
        size,
        h(
          "div",
          { class: "lf-row" },
          select("Filled with", [["texture", "a foreign texture"], ["dark", "dark paint"], ["turned", "cloth, turned"]], state.fill, (key) => {
            state.fill = key;
            update();
          }),
          h(
            "div",
            { class: "lf-field lf-bottom" },
            button("Next cloth", () => {
              state.index = (state.index + 1) % count;
              update();
            }),
          ),
        ),
        table,
        trouble,
        voice,
      ),
      h("div", { class: "lf-panel" }, h("p", { class: "lf-caption lf-tight" }, "Error at the centre. Lines: mean of several cloths under a foreign texture; points: this one."), chart.root),
    ),
  );

  function grow(hole) {
    state.hole = Math.max(0, Math.min(settings.most, hole));
    size.set(state.hole);
    update();
  }

  /** The cloth with the defect. */
  function damaged() {
    const image = Float32Array.from(inputs[state.index]);
    const first = (side - state.hole) / 2;
    const plane = side * side;
    for (let y = first; y < first + state.hole; y += 1) {
      for (let x = first; x < first + state.hole; x += 1) {
        for (let c = 0; c < 3; c += 1) {
          const i = c * plane + y * side + x;
          if (state.fill === "texture") image[i] = fills[state.index][i];
          else if (state.fill === "dark") image[i] = DARK[c];
          else image[i] = inputs[state.index][c * plane + x * side + y];
        }
      }
    }
    return image;
  }

  const update = latest(async () => {
    const { hole, index } = state;
    const image = damaged();
    const first = (side - hole) / 2;
    putImage(left, image, side);
    set(edge, { x: first, y: first, width: hole, height: hole });
    const [a, b] = fields[names[0]];
    set(field, { x: a, y: a, width: b - a + 1, height: b - a + 1 });
    const outputs = await context.predict("both", image, [1, 3, side, side]);
    const spoken = [`Defect of ${hole} pixels.`];
    names.forEach((name, k) => {
      const repaired = outputs.subarray(3 * k * side * side, 3 * (k + 1) * side * side);
      putImage(repairs[k], repaired, side);
      const error = centreError(repaired, sources[index], side) / variance;
      const clean = cleanShare(fields[name], first, hole);
      cells.get(name).error.textContent = error.toFixed(2);
      cells.get(name).clean.textContent = `${Math.round(100 * clean)} %`;
      chart.point(name, hole, error);
      spoken.push(`${settings.models[name]}: error ${error.toFixed(2)}, ${Math.round(100 * clean)} percent clean in view.`);
    });
    voice.say(spoken.join(" "));
    // Let the browser paint before the next answer.
    await new Promise((resolve) => requestAnimationFrame(resolve));
  }, context.tells ? null : trouble);

  function drawChart() {
    const { width, height, top } = CHART;
    const x = (hole) => (hole / settings.most) * width;
    const y = (error) => height * (1 - Math.min(error, top) / top);
    const blind = Math.max(...fields[names[0]].map((end) => Math.abs(2 * end + 1 - side) + 1));
    const points = new Map(names.map((name) => [name, svg("circle", { class: `bs-point bs-${name}`, r: 6 })]));
    const line = (name) =>
      svg("path", {
        class: `bs-line bs-${name}`,
        d: `M${[...arrays.sides.values].map((s, i) => `${x(s).toFixed(1)} ${y(arrays[name].values[i]).toFixed(1)}`).join("L")}`,
      });
    const label = `Error at the centre against the side of the defect, for ${names.length} networks; from ${blind} pixels on the first one is blind there`;
    const drawing = svg(
      "svg",
      { class: "se-chart bs-chart", viewBox: `-30 -10 ${width + 40} ${height + 52}`, role: "img", "aria-label": label },
      svg("rect", { class: "bs-blind", x: x(blind), y: 0, width: width - x(blind), height }),
      svg("path", { class: "se-grid", d: `M0 0V${height}H${width}` }),
      svg("path", { class: "se-marker", d: `M0 ${y(1)}H${width}` }),
      svg("text", { x: 6, y: y(1) - 6 }, "a single colour"),
      svg("text", { x: x(blind) + 5, y: height - 7 }, "blind"),
      svg("text", { x: -8, y: y(1) + 5, "text-anchor": "end" }, "1"),
      svg("text", { x: -8, y: height + 4, "text-anchor": "end" }, "0"),
      ...[0, blind, settings.most].map((v) => svg("text", { x: x(v), y: height + 18, "text-anchor": "middle" }, String(v))),
      svg("text", { x: width / 2, y: height + 37, "text-anchor": "middle" }, "side of the defect, pixels"),
      ...names.map(line),
      ...points.values(),
    );
    return {
      root: drawing,
      point: (name, hole, error) => set(points.get(name), { cx: x(hole), cy: y(error) }),
    };
  }

  await update();
}

/** Mean squared error in the middle of the image. */
function centreError(image, source, side) {
  const first = (side - BLOCK) / 2;
  let sum = 0;
  for (let c = 0; c < 3; c += 1) {
    for (let y = first; y < first + BLOCK; y += 1) {
      for (let x = first; x < first + BLOCK; x += 1) {
        const i = (c * side + y) * side + x;
        sum += (image[i] - source[i]) ** 2;
      }
    }
  }
  return sum / (3 * BLOCK * BLOCK);
}

/** Share of a square receptive field `[a, b]` that lies outside the defect. */
function cleanShare([a, b], first, hole) {
  const covered = Math.max(0, Math.min(b + 1, first + hole) - Math.max(a, first));
  return 1 - (covered / (b - a + 1)) ** 2;
}
