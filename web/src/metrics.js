// Curves of ssae.metrics on histograms: fast enough to follow a slider.

const LEVELS = 2048;

/** Connected regions (8 neighbours) of boolean masks `(N, side, side)`: label of each pixel, 0 outside, and their number. */
export function regions(masks, side) {
  const labels = new Int32Array(masks.length);
  const area = side * side;
  let count = 0;
  for (let start = 0; start < masks.length; start += 1) {
    if (!masks[start] || labels[start]) continue;
    count += 1;
    const base = start - (start % area);
    const stack = [start];
    labels[start] = count;
    while (stack.length) {
      const here = stack.pop() - base;
      const [x, y] = [here % side, Math.floor(here / side)];
      for (let v = Math.max(0, y - 1); v <= Math.min(side - 1, y + 1); v += 1) {
        for (let u = Math.max(0, x - 1); u <= Math.min(side - 1, x + 1); u += 1) {
          const there = base + v * side + u;
          if (masks[there] && !labels[there]) {
            labels[there] = count;
            stack.push(there);
          }
        }
      }
    }
  }
  return { labels, count };
}

/**
 * Rates at falling thresholds: `{threshold, fpr, tpr, pro}`, one entry for each level of a fine square-root scale. TPR counts
 * pixels, PRO averages the covered share of each region.
 */
export function curves(scores, { labels, count }) {
  const top = scores.reduce((most, value) => Math.max(most, value), 0) || 1;
  const level = (value) => Math.min(LEVELS - 1, Math.floor(LEVELS * Math.sqrt(value / top)));
  const size = new Float64Array(count + 1);
  for (const label of labels) size[label] += 1;
  const [normal, defect, regional] = [new Float64Array(LEVELS), new Float64Array(LEVELS), new Float64Array(LEVELS)];
  for (let i = 0; i < scores.length; i += 1) {
    const at = level(scores[i]);
    if (labels[i] === 0) normal[at] += 1;
    else {
      defect[at] += 1;
      regional[at] += 1 / size[labels[i]];
    }
  }
  const defects = scores.length - size[0];
  const points = { threshold: [top], fpr: [0], tpr: [0], pro: [0] };
  let [n, d, r] = [0, 0, 0];
  for (let at = LEVELS - 1; at >= 0; at -= 1) {
    n += normal[at];
    d += defect[at];
    r += regional[at];
    points.threshold.push(top * (at / LEVELS) ** 2);
    points.fpr.push(n / size[0]);
    points.tpr.push(d / defects);
    points.pro.push(r / count);
  }
  return points;
}

/** Area under `y` over `x` up to `limit`, divided by `limit`; the last piece is interpolated. */
export function areaUnder(x, y, limit = 1) {
  let area = 0;
  for (let i = 1; i < x.length; i += 1) {
    const end = Math.min(x[i], limit);
    if (end > x[i - 1]) {
      const height = y[i - 1] + ((y[i] - y[i - 1]) * (end - x[i - 1])) / (x[i] - x[i - 1]);
      area += ((end - x[i - 1]) * (y[i - 1] + height)) / 2;
    }
    if (x[i] >= limit) break;
  }
  return area / limit;
}
