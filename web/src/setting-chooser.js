// Setting chooser: choose among settings by defects drawn on held-out images, then see what the choice is worth on the
// test split. Chapter 13.

import { announcer, button, freshId, h, modified, readouts, select, svg } from "./frame.js";

const STRIP = { width: 300, height: 24, pad: 8 };
const GROUNDS = [
  ["validation", "drawn", 8],
  ["metrics", "test", 17],
];
const percent = (value) => (100 * value).toFixed(1);
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

export async function mount(root, context) {
  const { sets, metrics, start } = context.payload.settings;
  const state = { set: start.set, metric: start.metric, chosen: null };

  const group = freshId("setting");
  const rows = h("div", { class: "sc-rows" });
  const hint = h("p", { class: "lf-caption" });
  const shown = readouts([
    ["drawn", "On drawn defects"],
    ["test", "On the test split"],
    ["place", "Place on the test split"],
    ["cost", "Points below its best"],
  ]);
  const voice = announcer();
  root.append(
    h(
      "div",
      { class: "lf-row" },
      select("Runs", sets.map((set, i) => [String(i), set.title]), String(state.set), (key) => {
        state.set = Number(key);
        build();
      }),
      select("Judged by", Object.entries(metrics), state.metric, (key) => {
        state.metric = key;
        draw();
      }),
    ),
    h("fieldset", { class: "sc-choice", onkeydown: look }, h("legend", {}, "Choose a setting by its drawn defects"), rows),
    h(
      "p",
      { class: "sr-legend" },
      h("span", { class: "sr-key sc-key-drawn" }, "drawn defects"),
      h("span", { class: "sr-key sc-key-test" }, "test split, once you have chosen"),
    ),
    shown,
    h(
      "div",
      { class: "lf-row" },
      button("Take the best on drawn defects", () => choose(ranking("validation")[0])),
      button("Cover the test split", () => choose(null)),
    ),
    hint,
    voice,
  );

  /** Means over the seeds of each setting. */
  const means = (ground) => sets[state.set][ground][state.metric].map(mean);
  /** Indices of the settings, best first. */
  function ranking(ground) {
    const values = means(ground);
    return values.map((_, i) => i).sort((a, b) => values[b] - values[a]);
  }

  let [inputs, strips, ends] = [[], [], null];

  /** Rows for another set of runs, none of them chosen. */
  function build() {
    const { changes } = sets[state.set];
    inputs = changes.map((_, index) => h("input", { type: "radio", name: group, value: String(index), onchange: () => choose(index) }));
    strips = changes.map(() => h("span", {}));
    ends = h("div", {});
    rows.replaceChildren(
      ...changes.map((change, index) => h("label", { class: "sc-row" }, inputs[index], h("span", { class: "sc-name" }, change), strips[index])),
      ends,
    );
    choose(null);
  }

  function choose(index) {
    state.chosen = index;
    draw();
  }

  /** Arrow keys would choose, and uncover the test split, before one has looked: while it is covered they only move on. */
  function look(event) {
    const step = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
    const here = inputs.indexOf(document.activeElement);
    if (!step || here < 0 || state.chosen !== null || modified(event)) return;
    event.preventDefault();
    inputs[(here + step + inputs.length) % inputs.length].focus();
  }

  /** The grounds that are not covered, each with its values and their ends. */
  function uncovered() {
    return GROUNDS.filter(([, name]) => name === "drawn" || state.chosen !== null).map(([ground, name, y]) => {
      const all = sets[state.set][ground][state.metric];
      return { name, y, all, low: Math.min(...all.flat()), high: Math.max(...all.flat()) };
    });
  }

  function strip(index, grounds) {
    const marks = grounds.flatMap(({ name, y, all, low, high }) => {
      const x = (value) => STRIP.pad + ((value - low) / (high - low || 1)) * (STRIP.width - 2 * STRIP.pad);
      const dots = all[index].length > 1 ? all[index].map((value) => dot(name, x(value), y, 2)) : [];
      return [...dots, dot(name, x(mean(all[index])), y, 4.5)];
    });
    return svg(
      "svg",
      { class: "sc-strip", viewBox: `0 0 ${STRIP.width} ${STRIP.height}`, "aria-hidden": "true" },
      svg("path", { class: "se-grid", d: `M${STRIP.pad} ${STRIP.height / 2}H${STRIP.width - STRIP.pad}` }),
      ...marks,
    );
  }

  function draw() {
    const { changes } = sets[state.set];
    const [drawn, test] = [means("validation"), means("metrics")];
    const grounds = uncovered();
    strips = strips.map((old, index) => {
      const drawing = strip(index, grounds);
      old.replaceWith(drawing);
      inputs[index].checked = index === state.chosen;
      // The strips are for the eye alone.
      inputs[index].setAttribute("aria-description", `${percent(drawn[index])} percent on drawn defects`);
      return drawing;
    });
    const now = scales(grounds);
    ends.replaceWith(now);
    ends = now;
    if (state.chosen === null) {
      for (const name of ["drawn", "test", "place", "cost"]) shown.show(name, "–");
      hint.textContent = "The test split is covered. Whoever chooses by it makes it worthless for the report.";
      voice.say(`${sets[state.set].title}, ${metrics[state.metric]}: ${changes.length} settings. The test split is covered.`);
      return;
    }
    const order = ranking("metrics");
    const place = order.indexOf(state.chosen) + 1;
    const cost = test[order[0]] - test[state.chosen];
    shown.show("drawn", `${percent(drawn[state.chosen])} %`);
    shown.show("test", `${percent(test[state.chosen])} %`);
    shown.show("place", `${place} of ${changes.length}`);
    shown.show("cost", percent(cost));
    const bySight = ranking("validation")[0];
    hint.textContent =
      `The best on drawn defects, “${changes[bySight]}”, costs ${percent(test[order[0]] - test[bySight])} points there; a setting ` +
      `chosen blindly costs ${percent(test[order[0]] - mean(test))} on average. From now on every other choice is one by the test split.`;
    voice.say(`${changes[state.chosen]}: ${percent(test[state.chosen])} percent on the test split, place ${place} of ${changes.length}.`);
  }

  /** The ends of both scales, below the strips. */
  function scales(grounds) {
    const line = ({ name, low, high }) =>
      h("p", { class: `sc-scale sc-scale-${name}` }, h("span", {}, percent(low)), h("span", {}, percent(high)));
    return h("div", { class: "sc-scales" }, ...grounds.map(line));
  }

  build();
}

/** Drawn defects are discs, the test split is diamonds: not by colour alone. */
function dot(name, x, y, size) {
  const d = `M${x - size} ${y}L${x} ${y - size}L${x + size} ${y}L${x} ${y + size}Z`;
  return name === "drawn" ? svg("circle", { class: "sc-drawn", cx: x, cy: y, r: size }) : svg("path", { class: "sc-test", d });
}
