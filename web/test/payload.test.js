import assert from "node:assert/strict";
import { test } from "node:test";

import { decodeArray, parsePayload } from "../src/payload.js";

const floats = (values) => Buffer.from(Float32Array.from(values).buffer).toString("base64");

test("arrays keep shape and values", () => {
  const { shape, values } = decodeArray({ shape: [2, 2], data: floats([1, -2.5, 3e-8, 4]) });
  assert.deepEqual(shape, [2, 2]);
  assert.deepEqual([...values], [...Float32Array.from([1, -2.5, 3e-8, 4])]);
});

test("an array that does not fill its shape is refused", () => {
  assert.throws(() => decodeArray({ shape: [3], data: floats([1, 2]) }), /should hold 3 numbers, holds 2/);
});

test("a payload of another version is refused with the mend", () => {
  assert.throws(() => parsePayload({ format: "ssae-live", version: 99 }, "x.json"), /x\.json.*build the book again/);
});

test("missing sections read as empty", () => {
  const payload = parsePayload({ format: "ssae-live", version: 1, figure: "f" });
  assert.deepEqual(payload.models, {});
  assert.deepEqual(payload.files, {});
});

const array = (shape, values) => ({ shape, data: floats(values) });
const layer = (out, into, activation = "tanh") => ({
  weight: array([out, into], Array(out * into).fill(0.5)),
  bias: array([out], Array(out).fill(0)),
  activation,
});
const whole = (changes) => ({
  format: "ssae-live",
  version: 1,
  figure: "f",
  settings: { lambda: 0.2 },
  arrays: { curve: array([2], [0, 1]) },
  models: { m: [layer(3, 2), layer(2, 3, "identity")] },
  files: { onnx: "weave.onnx" },
  parts: { helix: "helix-1" },
  ...changes,
});

test("a whole payload passes", () => {
  assert.equal(parsePayload(whole()).models.m[1].activation, "identity");
});

const broken = {
  "no object": [null, /x: expected an object/],
  "a list": [[], /x: expected an object/],
  "no figure": [whole({ figure: 3 }), /x: expected the name of a figure/],
  "settings that are a text": [whole({ settings: "a" }), /x: settings: expected an object/],
  "an array that is a list": [whole({ arrays: { a: [1, 2] } }), /x: arrays a: expected a shape and data/],
  "a negative side": [whole({ arrays: { a: array([-1], []) } }), /arrays a: expected sides/],
  "a huge shape": [whole({ arrays: { a: array([2 ** 31, 2 ** 20], [1]) } }), /should hold \d+ numbers, holds 1/],
  "a text in the shape": [whole({ arrays: { a: array(["1"], [1]) } }), /arrays a: expected sides/],
  "data that are no base64": [whole({ arrays: { a: { shape: [1], data: "\u2026" } } }), /arrays a: expected data in base64/],
  "a number that is not finite": [whole({ arrays: { a: array([1], [NaN]) } }), /arrays a: expected finite numbers/],
  "a model without layers": [whole({ models: { m: [] } }), /models m: expected a list of layers/],
  "an activation out of the language": [whole({ models: { m: [layer(1, 1, "toString")] } }), /layer 0: expected one of/],
  "layers that do not fit": [whole({ models: { m: [layer(3, 2), layer(2, 4)] } }), /layer 1: expected 3 columns/],
  "a bias that does not fit": [
    whole({ models: { m: [{ ...layer(3, 2), bias: array([2], [0, 0]) }] } }),
    /layer 0: expected a matrix and a bias/,
  ],
  "a file elsewhere": [whole({ files: { onnx: "../../other.onnx" } }), /files onnx: expected a plain file name/],
  "a file on another host": [whole({ files: { onnx: "//host/m.onnx" } }), /expected a plain file name/],
  "a part elsewhere": [whole({ parts: { p: "a/b" } }), /parts p: expected a plain file name/],
};

for (const [name, [raw, message]] of Object.entries(broken)) {
  test(`refused: ${name}`, () => assert.throws(() => parsePayload(raw, "x"), message));
}
