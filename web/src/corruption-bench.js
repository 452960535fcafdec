// Corruption bench: the dials of the training corruption on real images, and what trained networks make of it. Chapter 9.

import { chooser, once } from "./choices.js";
import { blend, blobMask, fillOf } from "./corruption.js";
import { alarm, announcer, button, checkbox, draggable, h, latest, modified, readouts, select, slider } from "./frame.js";
import { canvas, loadStrip, pictures, putImage } from "./images.js";
import { steadyNoise, steadyUniform } from "./signals.js";

const FILLS = [["texture", "foreign texture"], ["elastic", "the image, bent"], ["elsewhere", "another place"], ["stain", "stain"]];
const MOST_BLOBS = 3;

export async function mount(root, context) {
  const { settings } = context.payload;
  const { side, count, elastic, upright } = settings;
  const strip = await loadStrip(context.file("images"), side);
  const [images, textures] = [strip.slice(0, count), strip.slice(count)];
  const dials = { ...settings.dials, blobs: 1, opacity: 1 };
  const state = { index: 0, fill: "texture", grey: false, seed: settings.seed, draws: null };
  let network = null;
  let filled = { key: null, fill: null };

  const left = canvas("The corrupted image. Drag the blob, or move it with the arrow keys; with Shift in larger steps.", side, {
    tabindex: "0",
    role: "application",
    class: "pd-canvas cb-canvas",
  });
  const mask = canvas("The mask: white where the image is corrupted", side);
  const inside = canvas("The fill, as if the mask were 1 everywhere", side);
  const right = canvas("What the network makes of the corrupted image", side);
  const cells = readouts([
    ["area", "Under the mask"],
    ["damage", "Changed by the damage"],
    ["left", "Left of it by the network"],
    ["outside", "Network changes outside"],
  ]);
  const note = h("p", { class: "lf-note cb-note" });
  const voice = announcer();
  const trouble = alarm();
  const partOf = once(async (key) => (key === "none" ? null : context.part(key)));
  const choose = chooser({
    load: (key) => {
      note.textContent = "Loading the network …";
      return partOf(key);
    },
    show: showNetwork,
    back: (key) => {
      choice.set(key);
      describe(key);
    },
    trouble,
    shown: "none",
  });
  const choice = select("Network (loads 13 MB)", [["none", "none"], ...Object.entries(settings.models)], "none", choose);
  describe("none");
  const percent = (v) => `${Math.round(100 * v)} %`;
  const dial = (label, name, range, format = percent) =>
    slider(label, { ...range, value: dials[name], format, name }, (value) => {
      dials[name] = value;
      update();
    });

  root.append(
    pictures(["Corrupted", left], ["Mask", mask], ["Fill", inside], ["Repaired", right]),
    h(
      "div",
      { class: "pd-controls" },
      h(
        "div",
        { class: "lf-panel" },
        h(
          "div",
          { class: "lf-row" },
          dial("Side", "side", { min: 0.05, max: Math.max(0.6, dials.side), step: 0.01 }),
          dial("Elongation", "elongation", { min: 1, max: 10, step: 0.5 }, (v) => `${v} : 1`),
          dial("Warp", "warp", { min: 0, max: 0.3, step: 0.01 }),
          dial("Fade", "fade", { min: 0.02, max: 0.6, step: 0.01 }),
          dial("Blobs", "blobs", { min: 1, max: MOST_BLOBS, step: 1 }, String),
          dial("Opacity", "opacity", { min: 0, max: 1, step: 0.01 }),
        ),
      ),
      h(
        "div",
        { class: "lf-panel" },
        h(
          "div",
          { class: "lf-row" },
          select("Fill", FILLS, state.fill, (key) => {
            state.fill = key;
            update();
          }),
          choice,
        ),
        checkbox("Texture or stain without colour", state.grey, (on) => {
          state.grey = on;
          update();
        }),
        h(
          "div",
          { class: "lf-buttons" },
          button("Draw again", () => draw(state.seed + 1)),
          button("Next image", () => {
            state.index = (state.index + 1) % count;
            update();
          }),
        ),
        cells,
        note,
        trouble,
        voice,
      ),
    ),
  );

  /** The random numbers of one corruption: the dials act on these, and only these change with "Draw again". */
  function draw(seed) {
    const uniform = steadyUniform(seed);
    const between = (low, high) => low + (high - low) * uniform();
    const coarse = () => steadyNoise(50, Math.floor(2 ** 31 * uniform()));
    state.seed = seed;
    state.draws = {
      blobs: Array.from({ length: MOST_BLOBS }, () => ({
        centre: [between(-0.6, 0.6), between(-0.6, 0.6)],
        stretch: uniform(),
        angle: between(0, 2 * Math.PI),
        coarse: coarse(),
      })),
      texture: Math.floor(textures.length * uniform()),
      fill: {
        amount: between(...elastic),
        coarse: coarse(),
        angle: between(0, 2 * Math.PI),
        scale: Math.exp(between(Math.log(0.7), Math.log(1.4))),
        shift: [between(-1, 1), between(-1, 1)],
        // A tone of the image's own mean, or any colour.
        tone: uniform() < 0.5 ? between(-0.4, 0.4) : null,
        colour: [uniform(), uniform(), uniform()],
        upright: uniform() < upright,
      },
    };
    update();
  }

  draggable(left, (event) => {
    const box = left.getBoundingClientRect();
    const place = (at, from, width) => (2 * (at - from)) / width - 1;
    move([place(event.clientX, box.left, box.width), place(event.clientY, box.top, box.height)]);
  });
  left.addEventListener("keydown", (event) => {
    if (modified(event)) return;
    const step = event.shiftKey ? 0.25 : 0.04;
    const by = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] }[event.key];
    if (!by) return;
    event.preventDefault();
    move(state.draws.blobs[0].centre.map((v, i) => v + by[i]));
  });

  function move(centre) {
    state.draws.blobs[0].centre = centre.map((v) => Math.max(-1, Math.min(1, v)));
    update();
  }

  function showNetwork(key, part) {
    network = part;
    describe(key);
    update();
  }

  function describe(key) {
    note.textContent = key === "none" ? "Choose a network to see its repair." : `Trained in this chapter: ${settings.models[key]}.`;
  }

  function corrupted() {
    const { draws, index, grey, seed } = state;
    const image = images[index];
    const blobs = draws.blobs.slice(0, dials.blobs).map((blob) => {
      const stretch = Math.sqrt(dials.elongation ** blob.stretch);
      return { ...blob, extent: [dials.side * stretch, dials.side / stretch] };
    });
    // The dials of the blobs leave the fill as it is.
    const key = [state.fill, index, grey, seed].join();
    if (filled.key !== key) filled = { key, fill: freshFill(image) };
    const under = blobMask(blobs, dials, side);
    return { image, fill: filled.fill, under, result: blend(image, filled.fill, under, dials.opacity) };
  }

  function freshFill(image) {
    const { draws, index, grey } = state;
    const { tone, colour } = draws.fill;
    const stain = colour.map((value, c) => (tone === null ? value : Math.max(0, Math.min(1, meanOf(image, c) + tone))));
    const shown = { image, other: images[(index + 1) % count], texture: textures[draws.texture] };
    // A share of the fills from elsewhere is only moved.
    const turn = state.fill === "elsewhere" && draws.fill.upright ? { angle: 0, scale: 1 } : {};
    return fillOf(state.fill, shown, { ...draws.fill, ...turn, colour: stain, grey }, side);
  }

  const update = latest(async () => {
    const { image, fill, under, result } = corrupted();
    const current = network;
    putImage(left, result, side);
    putImage(mask, under, side);
    putImage(inside, fill, side);
    const area = under.reduce((sum, value) => sum + value, 0) / under.length;
    const damage = rms(result, image, under, (m) => m > 0.5);
    cells.show("area", `${(100 * area).toFixed(1)} %`);
    cells.show("damage", damage === null ? "–" : damage.toFixed(3));
    if (!current) {
      right.getContext("2d").clearRect(0, 0, side, side);
      cells.show("left", "–");
      cells.show("outside", "–");
      voice.say(`${(100 * area).toFixed(0)} percent of the image is under the mask.`);
      return;
    }
    const repaired = await current.predict("model", result, [1, 3, side, side]);
    if (current !== network) return;
    putImage(right, repaired, side);
    const rest = rms(repaired, image, under, (m) => m > 0.5);
    const outside = rms(repaired, result, under, (m) => m === 0);
    cells.show("left", damage ? percent(rest / damage) : "–");
    cells.show("outside", outside === null ? "–" : outside.toFixed(3));
    voice.say(damage ? `The network leaves ${percent(rest / damage)} of the damage.` : "Nothing is damaged.");
    // Let the browser paint before the next answer.
    await new Promise((resolve) => requestAnimationFrame(resolve));
  }, context.tells ? null : trouble);

  draw(state.seed);
}

/** Root mean square difference of two images over the pixels whose mask value `counts`; null where there are none. */
function rms(a, b, mask, counts) {
  const plane = mask.length;
  let [sum, number] = [0, 0];
  for (let i = 0; i < plane; i += 1) {
    if (!counts(mask[i])) continue;
    number += 3;
    for (let c = 0; c < 3; c += 1) sum += (a[c * plane + i] - b[c * plane + i]) ** 2;
  }
  return number ? Math.sqrt(sum / number) : null;
}

function meanOf(image, channel) {
  const plane = image.length / 3;
  let sum = 0;
  for (let i = channel * plane; i < (channel + 1) * plane; i += 1) sum += image[i];
  return sum / plane;
}
