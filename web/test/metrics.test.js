import assert from "node:assert/strict";
import { test } from "node:test";

import { boxFilter, heatMap, topMean } from "../src/heat.js";
import { areaUnder, curves, regions } from "../src/metrics.js";

test("regions touch at corners, but not across images", () => {
  const masks = Uint8Array.from([1, 0, 0, 1, /* second image */ 1, 0, 0, 0]);
  const { labels, count } = regions(masks, 2);
  assert.equal(count, 2);
  assert.equal(labels[0], labels[3]);
  assert.notEqual(labels[3], labels[4]);
});

test("a perfect map has areas of one, a constant map of one half", () => {
  const masks = Uint8Array.from([0, 0, 0, 0, 1, 1, 0, 0, 0]);
  const truth = regions(masks, 3);
  const perfect = curves(Float32Array.from(masks), truth);
  assert.equal(areaUnder(perfect.fpr, perfect.tpr), 1);
  assert.equal(areaUnder(perfect.fpr, perfect.pro, 0.3), 1);
  const constant = curves(new Float32Array(9).fill(0.4), truth);
  assert.ok(Math.abs(areaUnder(constant.fpr, constant.tpr) - 0.5) < 1e-12);
});

test("every region counts the same in the PRO curve, every pixel in the ROC", () => {
  const masks = Uint8Array.from([1, 1, 1, 0, 0, 0, 0, 0, 1]);
  const truth = regions(masks, 3);
  const scores = Float32Array.from([9, 9, 9, 1, 1, 1, 1, 1, 1]);
  const { fpr, tpr, pro } = curves(scores, truth);
  const at = tpr.findIndex((rate) => rate > 0);
  assert.equal(fpr[at], 0);
  assert.equal(tpr[at], 3 / 4);
  assert.equal(pro[at], 1 / 2);
});

test("the last piece of an area is interpolated", () => {
  assert.ok(Math.abs(areaUnder([0, 1], [0, 1], 0.5) - 0.25) < 1e-12);
});

test("a box filter keeps constants and totals in the middle", () => {
  const flat = boxFilter(new Float32Array(49).fill(2), 7, 5, 3);
  assert.ok(flat.every((value) => Math.abs(value - 2) < 1e-5));
  const spike = new Float32Array(121);
  spike[60] = 9;
  const once = boxFilter(spike, 11, 3, 1);
  assert.ok(Math.abs(once[60] - 1) < 1e-6);
  assert.ok(Math.abs(once.reduce((sum, value) => sum + value, 0) - 9) < 1e-5);
});

test("the top mean averages the largest values", () => {
  assert.equal(topMean(Float32Array.from([1, 5, 2, 4]), 0.5), 4.5);
});

test("a heat map filters the squared difference, or its root", () => {
  const image = Float32Array.from({ length: 3 * 16 }, (_, i) => (i % 7) / 7);
  const repaired = image.map((value) => value + 0.5);
  assert.deepEqual([...heatMap(image, repaired, 4, { kernel: 3, passes: 2 })].map((v) => v.toFixed(5)), Array(16).fill("0.25000"));
  assert.deepEqual([...heatMap(image, repaired, 4, { root: true, kernel: 3, passes: 2 })].map((v) => v.toFixed(5)), Array(16).fill("0.50000"));
});
