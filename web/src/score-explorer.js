// Score explorer: one threshold over all heat maps, its point on the ROC and PRO curves, and what the filter does to both.
// Chapter 11.

import { announcer, fixed, h, set, slider, svg } from "./frame.js";
import { boxFilter, inferno } from "./heat.js";
import { readPixels } from "./images.js";
import { areaUnder, curves, regions } from "./metrics.js";

const SIZE = 300;
const OUTLINE = [86, 180, 233];
const TRUTH = [255, 255, 255];

export async function mount(root, context) {
  const { settings } = context.payload;
  const { side, limit } = settings;
  const area = side * side;
  const [strip, photographs] = await Promise.all([readPixels(context.file("maps")), readPixels(context.file("images"))]);
  const count = strip.length / 4 / area;
  const difference = new Float32Array(count * area);
  const masks = new Uint8Array(count * area);
  for (let i = 0; i < difference.length; i += 1) {
    // The square root of the map travels in red, the mask in green.
    difference[i] = settings.largest * (strip[4 * i] / 255) ** 2;
    masks[i] = strip[4 * i + 1] > 127 ? 1 : 0;
  }
  const truth = regions(masks, side);
  const state = { kernel: settings.kernel, passes: settings.passes, share: 0.05 };
  let heat = null;
  let points = null;
  let grounds = null;

  const titles = settings.titles;
  const tiles = titles.map((title) => h("canvas", { class: "se-tile", width: side, height: side, role: "img", "aria-label": `Heat map of ${title}` }));
  const tenth = (value) => Math.round(10 * value) / 10;
  const plot = (x, y) => `${tenth(x * SIZE)} ${tenth((1 - y) * SIZE)}`;
  const roc = svg("path", { class: "se-roc" });
  const pro = svg("path", { class: "se-pro" });
  const rocPoint = svg("circle", { class: "se-roc-point", r: 7 });
  const proPoint = svg("circle", { class: "se-pro-point", r: 7 });
  const marker = svg("line", { class: "se-marker", y1: 0, y2: SIZE });
  const chart = svg(
    "svg",
    { class: "se-chart", viewBox: `-34 -8 ${SIZE + 46} ${SIZE + 46}`, role: "img", "aria-label": "True positive rate and region overlap against the false positive rate" },
    svg("rect", { class: "se-limit", x: 0, y: 0, width: limit * SIZE, height: SIZE }),
    svg("path", { class: "se-grid", d: [0, 0.25, 0.5, 0.75, 1].map((v) => `M0 ${v * SIZE}H${SIZE}M${v * SIZE} 0V${SIZE}`).join("") }),
    svg("text", { x: SIZE / 2, y: SIZE + 30, "text-anchor": "middle" }, "false positive rate"),
    svg("text", { x: -8, y: 6, "text-anchor": "end" }, "1"),
    svg("text", { x: -8, y: SIZE + 4, "text-anchor": "end" }, "0"),
    svg("text", { x: SIZE, y: SIZE + 18, "text-anchor": "middle" }, "1"),
    marker,
    roc,
    pro,
    rocPoint,
    proPoint,
  );
  const names = [
    ["fpr", "False positives"],
    ["tpr", "Defect pixels found"],
    ["pro", "Region overlap"],
    ["auroc", "Pixel AUROC"],
    ["aupro", `AU-PRO (to ${limit})`],
  ];
  const cells = Object.fromEntries(names.map(([name]) => [name, h("dd", { "data-readout": name }, "–")]));
  const voice = announcer();

  root.append(
    h(
      "div",
      { class: "lf-split" },
      h(
        "div",
        { class: "se-left" },
        h(
          "div",
          { class: "se-tiles" },
          ...tiles.map((tile, i) => h("figure", { class: "se-figure" }, tile, h("figcaption", {}, titles[i]))),
        ),
        h("p", { class: "lf-caption" }, "White: the true outline. Blue: where the heat map exceeds the threshold."),
      ),
      h(
        "div",
        { class: "lf-panel" },
        h("p", { class: "sr-legend" }, h("span", { class: "sr-key se-key-roc" }, "ROC"), h("span", { class: "sr-key se-key-pro" }, "PRO")),
        chart,
        slider("Threshold, as false positive rate", { min: -3.5, max: 0, step: 0.02, value: Math.log10(state.share), format: (v) => `${(100 * 10 ** v).toPrecision(2)} %`, name: "threshold" }, (v) => {
          state.share = 10 ** v;
          show();
        }),
        h(
          "div",
          { class: "lf-row" },
          slider("Filter width k", { min: 1, max: 21, step: 2, value: state.kernel, format: (v) => `${v} px`, name: "kernel" }, (v) => {
            state.kernel = v;
            filter();
          }),
          slider("Passes n", { min: 0, max: 4, step: 1, value: state.passes, name: "passes" }, (v) => {
            state.passes = v;
            filter();
          }),
        ),
        h("dl", { class: "lf-readouts" }, ...names.map(([name, label]) => h("div", {}, h("dt", {}, label), cells[name]))),
        voice,
      ),
    ),
  );

  function filter() {
    heat = new Float32Array(difference.length);
    for (let k = 0; k < count; k += 1) {
      heat.set(boxFilter(difference.subarray(k * area, (k + 1) * area), side, state.kernel, state.passes), k * area);
    }
    points = curves(heat, truth);
    grounds = glowing();
    const line = (values) => {
      let [d, last] = ["", ""];
      for (let i = 0; i < values.length; i += 1) {
        const here = plot(points.fpr[i], values[i]);
        // Most of the levels lie on top of each other.
        if (here !== last) d += `${d ? "L" : "M"}${here}`;
        last = here;
      }
      return d;
    };
    set(roc, { d: line(points.tpr) });
    set(pro, { d: line(points.pro) });
    cells.auroc.textContent = areaUnder(points.fpr, points.tpr).toFixed(3);
    cells.aupro.textContent = areaUnder(points.fpr, points.pro, limit).toFixed(3);
    show();
  }

  function show() {
    // The lowest threshold that stays within the rate asked for.
    let at = points.fpr.findIndex((rate) => rate > state.share) - 1;
    if (at < 0) at = points.fpr.length - 1;
    const threshold = points.threshold[at];
    const [x, tpr, overlap] = [points.fpr[at], points.tpr[at], points.pro[at]];
    set(rocPoint, { cx: x * SIZE, cy: (1 - tpr) * SIZE });
    set(proPoint, { cx: x * SIZE, cy: (1 - overlap) * SIZE });
    set(marker, { x1: x * SIZE, x2: x * SIZE });
    cells.fpr.textContent = `${(100 * x).toFixed(2)} %`;
    cells.tpr.textContent = `${(100 * tpr).toFixed(1)} %`;
    cells.pro.textContent = `${(100 * overlap).toFixed(1)} %`;
    tiles.forEach((tile, k) => drawTile(tile, k, threshold));
    voice.say(`${fixed(100 * x, 1)} percent false positives, ${fixed(100 * tpr, 0)} percent of the defect pixels found.`);
  }

  /** The photographs under the glow of their heat maps; the threshold leaves these as they are. */
  function glowing() {
    const scale = points.threshold[0] * 0.35;
    return tiles.map((_, k) => {
      const pixels = new Uint8ClampedArray(4 * area);
      for (let i = 0; i < area; i += 1) {
        const glow = inferno(Math.sqrt(heat[k * area + i] / scale));
        const at = 4 * (k * area + i);
        for (let c = 0; c < 3; c += 1) pixels[4 * i + c] = 0.45 * photographs[at + c] + 0.55 * glow[c];
        pixels[4 * i + 3] = 255;
      }
      return pixels;
    });
  }

  function drawTile(tile, k, threshold) {
    const image = new ImageData(grounds[k].slice(), side);
    const start = k * area;
    outline((i) => masks[start + i] === 1, TRUTH, image.data);
    outline((i) => heat[start + i] > threshold, OUTLINE, image.data);
    tile.getContext("2d").putImageData(image, 0, 0);
  }

  /** Colour the pixels inside that touch the outside or the border. */
  function outline(inside, colour, pixels) {
    for (let y = 0, i = 0; y < side; y += 1) {
      for (let x = 0; x < side; x += 1, i += 1) {
        if (!inside(i)) continue;
        const within = x > 0 && y > 0 && x < side - 1 && y < side - 1;
        if (within && inside(i - 1) && inside(i + 1) && inside(i - side) && inside(i + side)) continue;
        for (let c = 0; c < 3; c += 1) pixels[4 * i + c] = colour[c];
      }
    }
  }

  filter();
}
