import assert from "node:assert/strict";
import { test } from "node:test";

import { forward } from "../src/mlp.js";

const array = (shape, values) => ({ shape, values: Float32Array.from(values) });
const layer = (weight, bias, activation) => ({ weight, bias, activation });

test("one linear layer is a matrix product", () => {
  const layers = [layer(array([2, 3], [1, 2, 3, 4, 5, 6]), array([2], [10, 20]), "identity")];
  assert.deepEqual([...forward(layers, [1, 0, 0, 0, 1, 1])], [11, 24, 15, 31]);
});

test("activations are the ones they are called", () => {
  const identity = array([1, 1], [1]);
  const value = (activation, x) => forward([layer(identity, array([1], [0]), activation)], [x])[0];
  assert.equal(value("relu", -2), 0);
  assert.ok(Math.abs(value("tanh", 0.5) - Math.tanh(0.5)) < 1e-7);
  assert.ok(Math.abs(value("silu", 3) - 3 / (1 + Math.exp(-3))) < 1e-6);
  // Far out, a sigmoid written with exp overflows.
  assert.equal(value("sigmoid", -1000), 0);
  assert.equal(value("sigmoid", 1000), 1);
  assert.throws(() => value("gelu", 1), /unknown activation "gelu"/);
});

test("input that does not fill whole rows is refused", () => {
  const layers = [layer(array([1, 2], [1, 1]), array([1], [0]), "identity")];
  assert.throws(() => forward(layers, [1, 2, 3]), /rows of 2/);
});
