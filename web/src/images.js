// Images `(3, side, side)` in [0, 1]: read from a strip, drawn on a canvas.

import { h } from "./frame.js";

/** Images from a picture in which they stand one below the other. */
export async function loadStrip(url, side) {
  const picture = new Image();
  picture.src = url;
  await picture.decode();
  const pen = h("canvas", { width: side, height: picture.naturalHeight }).getContext("2d", { willReadFrequently: true });
  pen.drawImage(picture, 0, 0);
  return Array.from({ length: picture.naturalHeight / side }, (_, k) => {
    const { data } = pen.getImageData(0, k * side, side, side);
    const plane = side * side;
    return Float32Array.from({ length: 3 * plane }, (_, i) => data[4 * (i % plane) + Math.floor(i / plane)] / 255);
  });
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
