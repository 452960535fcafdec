// Signal repair: paint a defect into a signal of 64 values and see what each autoencoder makes of it.
// Chapters 6 and 7.

import { chooser, once } from "./choices.js";
import { alarm, announcer, button, draggable, fixed, h, latest, modified, select, set, slider, svg } from "./frame.js";
import { nearestPhase, signalAt, steadyNoise } from "./signals.js";

const WIDTH = 640;
const HEIGHT = 380;
const LOW = -2;
const HIGH = 2;
const STRIP = 110;

export async function mount(root, context) {
  const { settings } = context.payload;
  const { shape } = settings;
  const n = shape.length;
  const shown = context.options.models ?? Object.keys(settings.models);
  const state = {
    model: context.options.model ?? settings.model,
    phase: 0.6,
    noise: 0,
    painted: new Map(),
    cursor: Math.round(n / 3),
  };
  let part = null;
  const grain = steadyNoise(n, 7);
  const burst = steadyNoise(n, 11);

  const toX = (k) => ((k + 0.5) * WIDTH) / n;
  const toY = (value) => ((HIGH - value) / (HIGH - LOW)) * HEIGHT;
  const path = (values) => `M${Array.from(values, (value, k) => `${r(toX(k))} ${r(toY(value))}`).join("L")}`;

  const band = svg("path", { class: "sr-band" });
  const source = svg("path", { class: "sr-source" });
  const exact = svg("path", { class: "sr-exact" });
  const repaired = svg("path", { class: "sr-repaired" });
  const input = svg("path", { class: "sr-input" });
  const dots = svg("path", { class: "sr-dots" });
  const wrong = svg("path", { class: "sr-wrong" });
  const cursor = svg("circle", { class: "sr-cursor", r: 9 });
  const canvas = svg(
    "svg",
    {
      class: "sr-plot",
      viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
      tabindex: "0",
      role: "slider",
      "aria-label": "Signal. Draw on it, or pick a sample with left and right and move it with up and down; Delete restores it.",
      "aria-valuemin": LOW,
      "aria-valuemax": HIGH,
      "aria-valuenow": 0,
      onkeydown: onKey,
    },
    svg("path", { class: "sr-grid", d: [-1, 0, 1].map((v) => `M0 ${toY(v)}H${WIDTH}`).join("") }),
    band,
    source,
    exact,
    input,
    dots,
    wrong,
    repaired,
    cursor,
  );
  const bars = svg("path", { class: "sr-bars" });
  const barsExact = svg("path", { class: "sr-bars-exact" });
  const bandBelow = svg("path", { class: "sr-band" });
  const strip = svg(
    "svg",
    { class: "sr-plot sr-strip", viewBox: `0 0 ${WIDTH} ${STRIP}`, role: "img", "aria-label": "What the model changes, sample by sample" },
    bandBelow,
    bars,
    barsExact,
  );

  let last = null;
  draggable(canvas, (event, phase) => {
    const box = canvas.getBoundingClientRect();
    const k = clamp(Math.floor(((event.clientX - box.left) / box.width) * n), 0, n - 1);
    const value = clamp(HIGH - ((event.clientY - box.top) / box.height) * (HIGH - LOW), LOW, HIGH);
    const from = phase === "down" || !last ? { k, value } : last;
    // A fast pointer skips samples: fill the gap with a straight line.
    const count = Math.max(1, Math.abs(k - from.k));
    for (let i = 0; i <= count; i += 1) {
      const share = i / count;
      state.painted.set(Math.round(from.k + share * (k - from.k)), from.value + share * (value - from.value));
    }
    state.cursor = k;
    last = phase === "up" ? null : { k, value };
    update();
  });

  const cell = (name) => h("td", { "data-readout": name }, "–");
  const rows = [
    ["model", "Model", "sr-key-model"],
    ["exact", "Exact projection", "sr-key-exact"],
  ].map(([key, label, style]) => ({
    key,
    change: cell(`change-${key}`),
    off: cell(`source-${key}`),
    clean: cell(`clean-${key}`),
    label,
    style,
  }));
  const table = h(
    "table",
    { class: "lf-table" },
    h("caption", { class: "lf-visually-hidden" }, "Root mean squares over the samples: how much each map changes the input, how far it ends from the source, and how much it changes where nothing was painted"),
    h(
      "thead",
      {},
      h("tr", {}, ...["Map", "changes", "off source", "clean part"].map((text) => h("th", { scope: "col" }, text))),
    ),
    h(
      "tbody",
      {},
      ...rows.map((row) =>
        h(
          "tr",
          {},
          h("th", { scope: "row" }, h("span", { class: `sr-key ${row.style}` }, row.label)),
          row.change,
          row.off,
          row.clean,
        ),
      ),
    ),
  );
  const share = h("dd", { "data-readout": "share" }, "–");
  const size = h("dd", { "data-readout": "painted" }, "–");
  const voice = announcer();
  const trouble = alarm();
  const choose = chooser({
    load: once(async (key) => (key === settings.model ? context : context.part(key))),
    show: showModel,
    back: (key) => choice.set(key),
    trouble,
  });
  const choice = shown.length > 1 ? select("Model", shown.map((key) => [key, settings.models[key]]), state.model, choose) : null;
  root.append(
    h(
      "div",
      { class: "lf-split" },
      h(
        "div",
        { class: "sr-left" },
        h(
          "p",
          { class: "sr-legend" },
          h("span", { class: "sr-key sr-key-source" }, "source"),
          h("span", { class: "sr-key sr-key-input" }, "input"),
          h("span", { class: "sr-key sr-key-model" }, "model"),
          h("span", { class: "sr-key sr-key-exact" }, "exact projection"),
        ),
        canvas,
        h("p", { class: "lf-caption" }, "What the model changes (bars) and the exact projection (outline)"),
        strip,
      ),
      h(
        "div",
        { class: "lf-panel" },
        choice,
        trouble,
        h(
          "div",
          { class: "lf-row" },
          slider("Phase of the source", { min: 0, max: 6.28, step: 0.02, value: state.phase, format: (u) => fixed(u, 2) }, (u) => {
            state.phase = u;
            update();
          }),
          slider("Noise on everything", { min: 0, max: 0.4, step: 0.02, value: 0, format: (s) => fixed(s, 2), name: "noise" }, (s) => {
            state.noise = s;
            update();
          }),
        ),
        h(
          "div",
          { class: "lf-buttons", role: "group", "aria-label": "Sample defects" },
          button("Flat piece", () => stamp(14, () => 1.2)),
          button("Shift", () => stamp(12, (k) => signalAt(shape, state.phase)[k] - 0.9)),
          button("Burst", () => stamp(12, (k) => 0.9 * burst[k])),
          button("Spike", () => stamp(1, () => 1.7)),
          button("Erase", () => {
            state.painted.clear();
            update();
          }),
        ),
        h(
          "dl",
          { class: "lf-readouts" },
          h("div", {}, h("dt", {}, "Score inside the defect"), share),
          h("div", {}, h("dt", {}, "Painted"), size),
        ),
        table,
        voice,
      ),
    ),
  );

  async function showModel(key, loaded) {
    state.model = key;
    part = loaded;
    await update();
  }

  function stamp(width, valueAt) {
    state.painted.clear();
    const first = clamp(Math.round(state.cursor - width / 2), 0, n - width);
    for (let k = first; k < first + width; k += 1) state.painted.set(k, valueAt(k));
    update();
  }

  function onKey(event) {
    if (modified(event)) return;
    // Noise comes on top of what is painted.
    const value = () => state.painted.get(state.cursor) ?? signalAt(shape, state.phase)[state.cursor];
    const step = (event.shiftKey ? 4 : 1) * 0.1;
    const actions = {
      ArrowLeft: () => (state.cursor = clamp(state.cursor - 1, 0, n - 1)),
      ArrowRight: () => (state.cursor = clamp(state.cursor + 1, 0, n - 1)),
      ArrowUp: () => state.painted.set(state.cursor, clamp(value() + step, LOW, HIGH)),
      ArrowDown: () => state.painted.set(state.cursor, clamp(value() - step, LOW, HIGH)),
      Delete: () => state.painted.delete(state.cursor),
      Backspace: () => state.painted.delete(state.cursor),
    };
    if (!actions[event.key]) return;
    event.preventDefault();
    actions[event.key]();
    update();
  }

  function inputSignal() {
    const values = signalAt(shape, state.phase);
    for (let k = 0; k < n; k += 1) values[k] = (state.painted.get(k) ?? values[k]) + state.noise * grain[k];
    return values;
  }

  const update = latest(async () => {
    const clean = signalAt(shape, state.phase);
    const seen = inputSignal();
    const inside = [...state.painted.keys()].sort((a, b) => a - b);
    const cleanPart = [...clean.keys()].filter((k) => !state.painted.has(k));
    const stripes = (height) => inside.map((k) => `M${r(toX(k - 0.5))} 0h${WIDTH / n}v${height}h${-WIDTH / n}Z`).join("");
    set(band, { d: stripes(HEIGHT) });
    set(bandBelow, { d: stripes(STRIP) });
    set(source, { d: path(clean) });
    set(input, { d: path(seen) });
    set(dots, { d: Array.from(seen, (value, k) => (state.painted.has(k) ? "" : dot(k, value))).join("") });
    set(wrong, { d: inside.map((k) => dot(k, seen[k])).join("") });
    set(cursor, { cx: toX(state.cursor), cy: toY(seen[state.cursor]) });
    set(canvas, {
      "aria-valuenow": seen[state.cursor].toFixed(2),
      "aria-valuetext": `sample ${state.cursor + 1} of ${n}, value ${fixed(seen[state.cursor], 2)}`,
    });

    // What is painted shows at once; the model may take its time, when a kernel answers.
    const current = part;
    const output = await current.predict(state.model, Float32Array.from(seen), [1, n]);
    if (current !== part) return;
    const projected = signalAt(shape, nearestPhase(shape, seen));
    set(repaired, { d: path(output) });
    set(exact, { d: path(projected) });
    set(bars, { d: columns(seen, output) });
    set(barsExact, { d: columns(seen, projected) });
    const results = { model: output, exact: projected };
    for (const row of rows) {
      row.change.textContent = fixed(rms(results[row.key], seen));
      row.off.textContent = fixed(rms(results[row.key], clean));
      row.clean.textContent = fixed(rms(results[row.key], seen, cleanPart));
    }
    const total = rms(output, seen) ** 2 * n;
    const within = rms(output, seen, inside) ** 2 * inside.length;
    share.textContent = inside.length ? `${Math.round((100 * within) / total)} %` : "no defect";
    size.textContent = `${inside.length} of ${n}`;
    voice.say(`The model changes the input by ${fixed(rms(output, seen), 2)}, and misses the source by ${fixed(rms(output, clean), 2)}.`);
  });

  const dot = (k, value) => `M${r(toX(k))} ${r(toY(value))}h0`;

  /** Bars from the middle line: what is added points up, what is taken away down. */
  function columns(before, after) {
    const width = (0.7 * WIDTH) / n;
    let d = "";
    for (let k = 0; k < n; k += 1) {
      const height = clamp((after[k] - before[k]) * STRIP * 0.25, -STRIP / 2, STRIP / 2);
      d += `M${r(toX(k) - width / 2)} ${STRIP / 2}h${r(width)}v${r(-height)}h${r(-width)}Z`;
    }
    return d;
  }

  for (const [k, value] of defaultDefect(n)) state.painted.set(k, value);
  await choose(state.model);
}

/** A flat piece to begin with, so that the first frame already shows the point. */
const defaultDefect = (n) => Array.from({ length: 12 }, (_, i) => [Math.round(0.3 * n) + i, -0.9]);

const clamp = (value, low, high) => Math.max(low, Math.min(high, value));
const r = (value) => Math.round(10 * value) / 10;

function rms(a, b, where = [...a.keys()]) {
  if (where.length === 0) return 0;
  return Math.sqrt(where.reduce((sum, k) => sum + (a[k] - b[k]) ** 2, 0) / where.length);
}
