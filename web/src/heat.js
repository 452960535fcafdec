// From a reconstruction to a heat map: ssae.scoring in JavaScript.

/** Squared difference of two images `(3, side, side)`, averaged over the colours. */
export function differenceMap(image, reconstruction, side) {
  const area = side * side;
  const map = new Float32Array(area);
  for (let c = 0; c < 3; c += 1) {
    for (let i = 0; i < area; i += 1) map[i] += (image[c * area + i] - reconstruction[c * area + i]) ** 2 / 3;
  }
  return map;
}

/** Difference map, or its root, box-filtered. */
export function heatMap(image, reconstruction, side, { root, kernel, passes }) {
  const change = differenceMap(image, reconstruction, side);
  return boxFilter(root ? change.map(Math.sqrt) : change, side, kernel, passes);
}

/** `passes` box filters of `kernel` pixels; at the border a window averages the pixels it has. */
export function boxFilter(map, side, kernel, passes) {
  let current = map;
  for (let pass = 0; pass < passes; pass += 1) {
    current = meanAlong(current, side, kernel, side, 1);
    current = meanAlong(current, side, kernel, 1, side);
  }
  return current;
}

/** Running mean along one axis: `step` between neighbours on a line, `stride` between lines. */
function meanAlong(map, side, kernel, step, stride) {
  const reach = kernel >> 1;
  const out = new Float32Array(map.length);
  for (let line = 0; line < side; line += 1) {
    const start = line * stride;
    let sum = 0;
    let count = 0;
    for (let i = 0; i < Math.min(reach, side); i += 1) {
      sum += map[start + i * step];
      count += 1;
    }
    for (let i = 0; i < side; i += 1) {
      if (i + reach < side) {
        sum += map[start + (i + reach) * step];
        count += 1;
      }
      if (i - reach - 1 >= 0) {
        sum -= map[start + (i - reach - 1) * step];
        count -= 1;
      }
      out[start + i * step] = sum / count;
    }
  }
  return out;
}

/** Mean of the largest `share` of a map: the image score "top". */
export function topMean(map, share) {
  const count = Math.max(1, Math.round(share * map.length));
  const sorted = Float32Array.from(map).sort();
  let sum = 0;
  for (let i = sorted.length - count; i < sorted.length; i += 1) sum += sorted[i];
  return sum / count;
}

// Nine stops of matplotlib's "inferno", which the book's heat maps use.
const INFERNO = [
  [0, 0, 4], [27, 12, 65], [74, 12, 107], [120, 28, 109], [165, 44, 96],
  [207, 68, 70], [237, 105, 37], [251, 155, 6], [252, 255, 164],
];

const SHADES = Array.from({ length: 1024 }, (_, i) => {
  const place = (i / 1023) * (INFERNO.length - 1);
  const low = Math.min(INFERNO.length - 2, Math.floor(place));
  return INFERNO[low].map((value, c) => value + (place - low) * (INFERNO[low + 1][c] - value));
});

/** Colour of `share` in [0, 1] as [red, green, blue], 0 to 255; of the root of a rounding error below 0, that of 0. */
export const inferno = (share) => SHADES[Math.round(1023 * Math.max(0, Math.min(1, share || 0)))];
