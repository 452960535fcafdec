// Images `(3, side, side)` in [0, 1]: read from a strip, drawn on a canvas.

import { h } from "./frame.js";

/** The pixels of a picture, four numbers from 0 to 255 each. */
export async function readPixels(url) {
  requireTruePixels();
  const picture = new Image();
  picture.src = url;
  await picture.decode();
  const { naturalWidth: width, naturalHeight: height } = picture;
  const pen = h("canvas", { width, height }).getContext("2d", { willReadFrequently: true });
  pen.drawImage(picture, 0, 0);
  return pen.getImageData(0, 0, width, height).data;
}

/** Against fingerprinting some browsers answer a script that reads pixels with others: better no figure than such numbers. */
function requireTruePixels() {
  const side = 64;
  const pen = h("canvas", { width: side, height: side }).getContext("2d", { willReadFrequently: true });
  const drawn = new ImageData(side, side);
  for (let i = 0; i < drawn.data.length; i += 1) drawn.data[i] = i % 4 === 3 ? 255 : (i * i * 31 + 7 * i) % 256;
  pen.putImageData(drawn, 0, 0);
  const { data } = pen.getImageData(0, 0, side, side);
  if (data.some((value, i) => value !== drawn.data[i])) {
    throw new Error("this browser does not show the pixels of pictures to scripts (a protection against fingerprinting).");
  }
}

/** Images from a picture in which they stand one below the other. */
export async function loadStrip(url, side) {
  const data = await readPixels(url);
  const plane = side * side;
  return Array.from({ length: data.length / 4 / plane }, (_, k) =>
    Float32Array.from({ length: 3 * plane }, (_, i) => data[4 * (k * plane + (i % plane)) + Math.floor(i / plane)] / 255),
  );
}

/** Draw an image, or a map `(side, side)` in grey; values beyond [0, 1] are clipped. */
export function putImage(target, values, side) {
  const plane = side * side;
  const image = new ImageData(side, side);
  const { data } = image;
  const step = values.length === plane ? 0 : plane;
  for (let i = 0; i < plane; i += 1) {
    for (let c = 0; c < 3; c += 1) data[4 * i + c] = 255 * values[c * step + i];
    data[4 * i + 3] = 255;
  }
  target.getContext("2d").putImageData(image, 0, 0);
}

/** Canvas for an image of `side` pixels, described by `label`. */
export const canvas = (label, side, attributes = {}) =>
  h("canvas", { class: "pd-canvas", role: "img", "aria-label": label, width: side, height: side, ...attributes });

/** Captioned pictures in a row. */
export const pictures = (...entries) =>
  h("div", { class: "pd-images" }, ...entries.map(([title, picture]) => h("div", {}, h("p", { class: "lf-caption" }, title), picture)));
