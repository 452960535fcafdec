import assert from "node:assert/strict";
import { test } from "node:test";

import { boxFilter, inferno } from "../src/heat.js";

test("a running sum that ends below zero by rounding has a colour all the same", () => {
  const side = 96;
  const map = new Float32Array(side * side);
  for (let y = 30; y < 50; y += 1) for (let x = 30; x < 50; x += 1) map[y * side + x] = Math.exp(-60 * Math.sin(12.9898 * x + 78.233 * y) ** 2);
  const heat = boxFilter(map, side, 5, 3);
  assert.ok(heat.some((value) => value < 0), "the case that this is about");
  for (const value of heat) assert.ok(inferno(Math.sqrt(value)).every((level) => level >= 0 && level <= 255));
});
