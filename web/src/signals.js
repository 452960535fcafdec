// The manifold of chapter 6 in JavaScript: ssae.manifolds.HarmonicSignals with tied phases.

/** Signal of phase `u`; `shape` is `{length, amplitudes, harmonics}`. */
export function signalAt(shape, u) {
  const [a, b] = shape.amplitudes;
  const [v, w] = shape.harmonics;
  return Float64Array.from({ length: shape.length }, (_, k) => {
    const t = (2 * Math.PI * k) / shape.length;
    return a * Math.sin(v * (t + u)) + b * Math.sin(w * (t + u));
  });
}

export function squaredDistance(a, b) {
  let sum = 0;
  for (let i = 0; i < a.length; i += 1) sum += (a[i] - b[i]) ** 2;
  return sum;
}

/** Exact projection: the phase of the nearest signal, from a grid and then by golden-section search. */
export function nearestPhase(shape, signal, grid = 360) {
  const gap = (u) => squaredDistance(signalAt(shape, u), signal);
  const step = (2 * Math.PI) / grid;
  let best = 0;
  for (let i = 1, least = gap(0); i < grid; i += 1) {
    const here = gap(i * step);
    if (here < least) [best, least] = [i, here];
  }
  const ratio = (Math.sqrt(5) - 1) / 2;
  let [low, high] = [(best - 1) * step, (best + 1) * step];
  for (let i = 0; i < 40; i += 1) {
    const width = ratio * (high - low);
    if (gap(high - width) < gap(low + width)) high = low + width;
    else low = high - width;
  }
  return (low + high) / 2;
}

/** Numbers evenly spread over [0, 1) that are the same at every visit (mulberry32); gives the next at each call. */
export function steadyUniform(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

/** Standard normal numbers that are the same at every visit (Box-Muller). */
export function steadyNoise(count, seed) {
  const uniform = steadyUniform(seed);
  return Float64Array.from(
    { length: count },
    () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform()),
  );
}
