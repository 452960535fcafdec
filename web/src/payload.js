// Reads the payloads that ssae.export writes. See the docstring of ssae/export.py for the format.

export const FORMAT = "ssae-live";
export const VERSION = 1;

/** Base64, little endian, to a Float32Array with its shape. */
export function decodeArray(record) {
  const binary = atob(record.data);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i += 1) bytes[i] = binary.charCodeAt(i);
  const view = new DataView(bytes.buffer);
  const values = new Float32Array(bytes.length / 4);
  for (let i = 0; i < values.length; i += 1) values[i] = view.getFloat32(4 * i, true);
  const size = record.shape.reduce((product, side) => product * side, 1);
  if (size !== values.length) {
    throw new Error(`array of shape ${record.shape} should hold ${size} numbers, holds ${values.length}`);
  }
  return { shape: record.shape, values };
}

/** Check a payload and unpack its arrays and models. */
export function parsePayload(raw, name = "payload") {
  if (raw.format !== FORMAT || raw.version !== VERSION) {
    throw new Error(
      `${name}: this page reads ${FORMAT} version ${VERSION}, the file says ${raw.format} version ${raw.version}; build the book again`,
    );
  }
  const unpack = (record, change) =>
    Object.fromEntries(Object.entries(record ?? {}).map(([key, value]) => [key, change(value)]));
  return {
    figure: raw.figure,
    settings: raw.settings ?? {},
    arrays: unpack(raw.arrays, decodeArray),
    models: unpack(raw.models, (layers) =>
      layers.map((layer) => ({
        weight: decodeArray(layer.weight),
        bias: decodeArray(layer.bias),
        activation: layer.activation,
      })),
    ),
    files: raw.files ?? {},
    parts: raw.parts ?? {},
  };
}

/** Fetch and parse a payload. */
export async function loadPayload(url) {
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(`${url}: the server answered ${answer.status}`);
  return parsePayload(await answer.json(), String(url));
}
