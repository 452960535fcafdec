import assert from "node:assert/strict";
import { test } from "node:test";

import { crossings, nearestOnCurve } from "../src/geometry.js";
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

test("a vertical line crosses the circle twice, and not at all beside it", () => {
  const angles = Array.from({ length: 600 }, (_, i) => (2 * Math.PI * i) / 600);
  const curve = Float32Array.from(angles.flatMap((t) => [Math.cos(t), Math.sin(t)]));
  for (const x of [-0.9, 0, 0.301]) {
    const [above, below] = crossings(curve, x, true).sort((a, b) => b - a);
    assert.ok(Math.abs(above - Math.sqrt(1 - x * x)) < 1e-4);
    assert.ok(Math.abs(below + Math.sqrt(1 - x * x)) < 1e-4);
  }
  assert.deepEqual(crossings(curve, 1.2, true), []);
});

test("an open curve has no piece from its end back to its start", () => {
  const curve = Float32Array.from([-1, 0, 0, 1, 1, 0]);
  assert.deepEqual(crossings(curve, 0.5, false), [0.5]);
  assert.deepEqual(crossings(curve, 0.5, true), [0.5, 0]);
});
