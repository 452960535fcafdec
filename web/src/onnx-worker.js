// One thread of WebAssembly: static hosts send no isolation headers, so more threads are not to be had.

import * as ort from "./ort/ort.wasm.min.mjs";

ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmPaths = new URL("./ort/", import.meta.url).href;

let session = null;

async function answer({ model, inputs, shape }) {
  if (model) {
    session = await ort.InferenceSession.create(model, { executionProviders: ["wasm"] });
    return null;
  }
  const feeds = { [session.inputNames[0]]: new ort.Tensor("float32", inputs, shape) };
  const results = await session.run(feeds);
  return results[session.outputNames[0]].data;
}

self.onmessage = async ({ data }) => {
  try {
    const outputs = await answer(data);
    self.postMessage({ id: data.id, outputs });
  } catch (error) {
    self.postMessage({ id: data.id, error: String(error.message ?? error) });
  }
};
