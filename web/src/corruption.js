// Partial corruption in JavaScript: what ssae.corruption makes of given random numbers. Explained in chapter 9.
// Coordinates run from -1 to 1 across an image, x before y, as they do there.

const TEMPLATE = 48;
const CELLS = 5;

/** Weights (cells x size) of bicubic interpolation from a few cells to `size` places, corners aligned; as in PyTorch. */
export function bicubicWeights(cells, size) {
  const a = -0.75;
  const near = (t) => ((a + 2) * t - (a + 3)) * t * t + 1;
  const far = (t) => ((a * t - 5 * a) * t + 8 * a) * t - 4 * a;
  const weights = new Float64Array(cells * size);
  for (let i = 0; i < size; i += 1) {
    const place = (i * (cells - 1)) / (size - 1);
    const before = Math.min(Math.floor(place), cells - 1);
    const t = place - before;
    [far(1 + t), near(t), near(1 - t), far(2 - t)].forEach((weight, k) => {
      const cell = Math.max(0, Math.min(cells - 1, before - 1 + k));
      weights[cell * size + i] += weight;
    });
  }
  return weights;
}

/** Smooth vector field `(2, size, size)` from random numbers `(2, 5, 5)`, times `scale`. */
export function smoothField(coarse, size, scale = 1) {
  const weights = bicubicWeights(CELLS, size);
  const field = new Float64Array(2 * size * size);
  const row = new Float64Array(CELLS * size);
  for (let axis = 0; axis < 2; axis += 1) {
    row.fill(0);
    for (let v = 0; v < CELLS; v += 1) {
      for (let u = 0; u < CELLS; u += 1) {
        const value = scale * coarse[(axis * CELLS + v) * CELLS + u];
        for (let x = 0; x < size; x += 1) row[v * size + x] += value * weights[u * size + x];
      }
    }
    for (let v = 0; v < CELLS; v += 1) {
      for (let y = 0; y < size; y += 1) {
        const weight = weights[v * size + y];
        const start = (axis * size + y) * size;
        for (let x = 0; x < size; x += 1) field[start + x] += weight * row[v * size + x];
      }
    }
  }
  return field;
}

/** A disk that fades outwards, bent by a smooth field, on a grid of its own. */
export function blobTemplate(coarse, { warp, fade }) {
  const field = smoothField(coarse, TEMPLATE, 2 * warp);
  const template = new Float64Array(TEMPLATE * TEMPLATE);
  const place = (i) => (2 * i) / (TEMPLATE - 1) - 1;
  for (let v = 0; v < TEMPLATE; v += 1) {
    for (let u = 0; u < TEMPLATE; u += 1) {
      const i = v * TEMPLATE + u;
      const radius = Math.hypot(place(u) + field[i], place(v) + field[TEMPLATE * TEMPLATE + i]);
      const margin = clamp((1 - Math.max(Math.abs(place(u)), Math.abs(place(v)))) / 0.15);
      const soft = clamp((1 - fade - radius) / (2 * fade) + 0.5) * margin;
      template[i] = soft * soft * (3 - 2 * soft);
    }
  }
  return template;
}

/**
 * Union of soft-edged blobs, `(side, side)` in [0, 1]. A blob is `{centre: [x, y], extent: [long, short], angle, coarse}`, its
 * extents shares of the image side.
 */
export function blobMask(blobs, dials, side) {
  const mask = new Float32Array(side * side);
  for (const { centre, extent, angle, coarse } of blobs) {
    const template = blobTemplate(coarse, dials);
    const [cos, sin] = [Math.cos(angle), Math.sin(angle)];
    for (let y = 0; y < side; y += 1) {
      for (let x = 0; x < side; x += 1) {
        const dx = (2 * x + 1) / side - 1 - centre[0];
        const dy = (2 * y + 1) / side - 1 - centre[1];
        const across = (cos * dx + sin * dy) / extent[0];
        const down = (-sin * dx + cos * dy) / extent[1];
        if (Math.abs(across) >= 1 || Math.abs(down) >= 1) continue;
        const value = readAt(template, TEMPLATE, placeOf(down, TEMPLATE), placeOf(across, TEMPLATE));
        if (value > mask[y * side + x]) mask[y * side + x] = value;
      }
    }
  }
  return mask;
}

/** Read a map `(size, size)` between its pixels, `down` and `across` counted in these. */
function readAt(map, size, down, across, offset = 0) {
  const y = Math.min(Math.floor(down), size - 2);
  const x = Math.min(Math.floor(across), size - 2);
  const i = offset + y * size + x;
  const upper = map[i] + (across - x) * (map[i + 1] - map[i]);
  const lower = map[i + size] + (across - x) * (map[i + size + 1] - map[i + size]);
  return upper + (down - y) * (lower - upper);
}

/** A coordinate in pixels; beyond the borders it is reflected. */
function placeOf(coordinate, size) {
  const turns = (coordinate + 1) / 4;
  return Math.max(0, Math.min(size - 1, Math.abs(turns - Math.round(turns)) * 2 * size - 0.5));
}

/**
 * What would show through a mask that is 1 everywhere, `(3, side, side)`. `kind` is one of the four fills; `images` holds the
 * image itself, another one and a foreign texture; `draws` the random numbers: `{amount, coarse}` of an elastic fill,
 * `{angle, scale, shift}` of the places read, `colour`, and whether the fill is `grey`.
 */
export function fillOf(kind, images, draws, side) {
  const plane = side * side;
  const fill = new Float32Array(3 * plane);
  if (kind === "stain") {
    for (let c = 0; c < 3; c += 1) fill.fill(draws.colour[c], c * plane, (c + 1) * plane);
  } else {
    const source = { elastic: images.image, elsewhere: images.other, texture: images.texture }[kind];
    const push = kind === "elastic" ? smoothField(draws.coarse, side, 2 * draws.amount) : null;
    const [cos, sin] = [draws.scale * Math.cos(draws.angle), draws.scale * Math.sin(draws.angle)];
    for (let y = 0; y < side; y += 1) {
      for (let x = 0; x < side; x += 1) {
        const i = y * side + x;
        const [right, below] = [(2 * x + 1) / side - 1, (2 * y + 1) / side - 1];
        const across = placeOf(push ? right + push[i] : cos * right + sin * below + draws.shift[0], side);
        const down = placeOf(push ? below + push[plane + i] : cos * below - sin * right + draws.shift[1], side);
        for (let c = 0; c < 3; c += 1) fill[c * plane + i] = readAt(source, side, down, across, c * plane);
      }
    }
  }
  if (draws.grey && (kind === "texture" || kind === "stain")) {
    for (let i = 0; i < plane; i += 1) {
      const mean = (fill[i] + fill[plane + i] + fill[2 * plane + i]) / 3;
      for (let c = 0; c < 3; c += 1) fill[c * plane + i] = mean;
    }
  }
  return fill;
}

/** `image + opacity * mask * (fill - image)`. */
export function blend(image, fill, mask, opacity) {
  const plane = mask.length;
  const result = new Float32Array(image.length);
  for (let start = 0; start < image.length; start += plane) {
    for (let i = 0; i < plane; i += 1) {
      const value = image[start + i];
      result[start + i] = value + opacity * mask[i] * (fill[start + i] - value);
    }
  }
  return result;
}

const clamp = (value) => Math.max(0, Math.min(1, value));
