// Reads the payloads that ssae.payloads writes. See the docstring of ssae/payloads.py for the format.

import { ACTIVATIONS } from "./mlp.js";

export const FORMAT = "ssae-live";
export const VERSION = 1;

const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

/** The value, if it is of the kind wanted; otherwise an error that says where. */
function expect(holds, where, wanted) {
  if (!holds) throw new Error(`${where}: expected ${wanted}; build the book again`);
}

/** Base64, little endian, to a Float32Array with its shape. */
export function decodeArray(record, where = "array") {
  expect(isObject(record) && typeof record.data === "string" && Array.isArray(record.shape), where, "a shape and data");
  expect(record.shape.every((side) => Number.isSafeInteger(side) && side >= 0), where, "sides that are whole numbers");
  let binary;
  try {
    binary = atob(record.data);
  } catch {
    expect(false, where, "data in base64");
  }
  const size = record.shape.reduce((product, side) => product * side, 1);
  if (4 * size !== binary.length) {
    throw new Error(`${where} of shape ${record.shape} should hold ${size} numbers, holds ${binary.length / 4}`);
  }
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i += 1) bytes[i] = binary.charCodeAt(i);
  const view = new DataView(bytes.buffer);
  const values = new Float32Array(size);
  for (let i = 0; i < size; i += 1) values[i] = view.getFloat32(4 * i, true);
  expect(values.every(Number.isFinite), where, "finite numbers");
  return { shape: record.shape, values };
}

/** Layers of a multilayer perceptron, each of which fits the one before it. */
function decodeLayers(layers, where) {
  expect(Array.isArray(layers) && layers.length > 0, where, "a list of layers");
  let width = null;
  return layers.map((layer, index) => {
    const here = `${where}, layer ${index}`;
    expect(
      isObject(layer) && Object.hasOwn(ACTIVATIONS, layer.activation),
      here,
      `one of the activations ${Object.keys(ACTIVATIONS).join(", ")}`,
    );
    const weight = decodeArray(layer.weight, here);
    const bias = decodeArray(layer.bias, here);
    const [rows, columns] = weight.shape;
    expect(weight.shape.length === 2 && bias.shape.length === 1 && bias.shape[0] === rows, here, "a matrix and a bias that fits");
    expect(width === null || width === columns, here, `${width} columns, as the layer before it has rows`);
    width = rows;
    return { weight, bias, activation: layer.activation };
  });
}

/** Check all of a payload, as ssae.payloads.read_payload does, and unpack its arrays and models. */
export function parsePayload(raw, name = "payload") {
  expect(isObject(raw), name, "an object");
  if (raw.format !== FORMAT || raw.version !== VERSION) {
    throw new Error(
      `${name}: this page reads ${FORMAT} version ${VERSION}, the file says ${raw.format} version ${raw.version}; build the book again`,
    );
  }
  expect(typeof raw.figure === "string", name, "the name of a figure");
  const section = (key, change) => {
    const entries = raw[key] ?? {};
    expect(isObject(entries), `${name}: ${key}`, "an object");
    return Object.fromEntries(
      Object.entries(entries).map(([entry, value]) => [entry, change(value, `${name}: ${key} ${entry}`)]),
    );
  };
  // Fetched from the payload's own folder, and from nowhere else.
  const fileName = (value, where) => {
    expect(typeof value === "string" && /^\w[\w.-]*$/.test(value), where, "a plain file name");
    return value;
  };
  return {
    figure: raw.figure,
    settings: section("settings", (value) => value),
    arrays: section("arrays", decodeArray),
    models: section("models", decodeLayers),
    files: section("files", fileName),
    parts: section("parts", fileName),
  };
}

/** Fetch and parse a payload. */
export async function loadPayload(url) {
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(`${url}: the server answered ${answer.status}`);
  return parsePayload(await answer.json(), String(url));
}
