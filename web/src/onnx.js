// Convolutional models in the page: onnxruntime-web in a worker of its own, so that painting stays fluent.

/** Start the worker on a model; resolves to `predict(name, inputs, shape)`. */
export function onnxPredict(modelUrl) {
  const worker = new Worker(new URL("./onnx-worker.js", import.meta.url), { type: "module" });
  const waiting = new Map();
  let serial = 0;
  let dead = null;
  const ask = (message, transfer = []) =>
    new Promise((resolve, reject) => {
      if (dead) throw dead;
      serial += 1;
      waiting.set(serial, { resolve, reject });
      worker.postMessage({ ...message, id: serial }, transfer);
    });
  worker.onmessage = ({ data: { id, outputs, error } }) => {
    const { resolve, reject } = waiting.get(id);
    waiting.delete(id);
    if (error) reject(new Error(error));
    else resolve(outputs);
  };
  worker.onerror = (event) => {
    dead = new Error(event.message || "the model's worker stopped");
    for (const { reject } of waiting.values()) reject(dead);
    waiting.clear();
  };
  const predict = (_name, inputs, shape) => {
    const copy = Float32Array.from(inputs);
    return ask({ inputs: copy, shape }, [copy.buffer]);
  };
  return ask({ model: modelUrl.href }).then(
    () => predict,
    (error) => {
      // Another try starts another worker.
      worker.terminate();
      throw error;
    },
  );
}
