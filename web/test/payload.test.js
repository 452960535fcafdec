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
