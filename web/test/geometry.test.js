import assert from "node:assert/strict";
import { test } from "node:test";

import { nearestOnCurve } from "../src/geometry.js";
import { nearestPhase, signalAt, squaredDistance, steadyNoise } from "../src/signals.js";

const circle = Float32Array.from({ length: 1200 }, (_, i) => {
  const angle = (2 * Math.PI * (i >> 1)) / 600;
  return i % 2 ? Math.sin(angle) : Math.cos(angle);
});

test("on a circle the nearest point is the point divided by its length", () => {
  for (const [x, y] of [[2, 0], [0.3, -0.4], [-1.2, 0.9], [0.01, 1.5]]) {
    const length = Math.hypot(x, y);
    const [px, py] = nearestOnCurve(circle, [x, y], true);
    assert.ok(Math.hypot(px - x / length, py - y / length) < 1e-5);
  }
});

test("on an open curve the nearest point may be its end, on a closed one never", () => {
  const arc = circle.slice(0, 302); // the quarter from angle 0 to a little over 90 degrees
  const end = nearestOnCurve(arc, [-1, -0.2], false);
  assert.ok(Math.hypot(end[0] - arc.at(-2), end[1] - arc.at(-1)) < 1e-6);
  const wrapped = nearestOnCurve(circle, [1.3, -1e-3], true);
  assert.ok(Math.hypot(wrapped[0] - 1, wrapped[1] + 1e-3 / 1.3) < 1e-5);
});

const shape = { length: 64, amplitudes: [1, 0.5], harmonics: [1, 2] };

test("a signal of the manifold is its own projection", () => {
  for (const phase of [0, 1.1, 3.3, 6.2]) {
    const found = signalAt(shape, nearestPhase(shape, signalAt(shape, phase)));
    assert.ok(squaredDistance(found, signalAt(shape, phase)) < 1e-12);
  }
});

test("the projection is nearer than any other signal of the manifold", () => {
  const seen = signalAt(shape, 2).map((value, k) => (k > 40 && k < 55 ? 0.9 : value));
  const least = squaredDistance(signalAt(shape, nearestPhase(shape, seen)), seen);
  for (let u = 0; u < 6.28; u += 0.003) assert.ok(squaredDistance(signalAt(shape, u), seen) >= least - 1e-9);
});

test("steady noise is steady and standard normal", () => {
  const noise = steadyNoise(20000, 3);
  assert.deepEqual([...noise.slice(0, 5)], [...steadyNoise(5, 3)]);
  const mean = noise.reduce((sum, x) => sum + x, 0) / noise.length;
  const variance = noise.reduce((sum, x) => sum + (x - mean) ** 2, 0) / noise.length;
  assert.ok(Math.abs(mean) < 0.03 && Math.abs(variance - 1) < 0.05);
});
