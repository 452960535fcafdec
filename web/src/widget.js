// Host of the live figures in Jupyter, VS Code and Colab: an anywidget, answered by the kernel's own model.

import { parsePayload } from "./payload.js";

/** Turn a figure's `mount` into what anywidget expects. */
export function widgetFor(mount) {
  async function render({ model, el }) {
    const waiting = new Map();
    let serial = 0;
    const onMessage = (message, buffers) => {
      const promise = waiting.get(message.id);
      if (!promise) return;
      waiting.delete(message.id);
      if (message.error) promise.reject(new Error(message.error));
      else promise.resolve(toFloats(buffers[0]));
    };
    model.on("msg:custom", onMessage);

    const contextFor = (payload, part) => ({
      payload,
      options: model.get("options"),
      predict: (name, inputs, shape = null) =>
        new Promise((resolve, reject) => {
          serial += 1;
          const id = `${Date.now()}-${serial}-${Math.random()}`;
          waiting.set(id, { resolve, reject });
          model.send({ id, model: name, part, shape }, undefined, [Float32Array.from(inputs).buffer]);
        }),
      part: async (key) => contextFor(parsePayload(model.get("part_payloads")[key], key), key),
      file: (role) => model.get("file_urls")[role],
    });

    const root = document.createElement("div");
    root.className = "live-figure";
    root.dataset.liveFigure = model.get("figure");
    root.dataset.state = "loading";
    const stage = document.createElement("div");
    stage.className = "lf-stage";
    root.append(stage);
    el.append(root);
    try {
      await mount(stage, contextFor(parsePayload(model.get("payload")), null));
      root.dataset.state = "ready";
    } catch (error) {
      root.dataset.state = "failed";
      stage.textContent = `This figure could not start: ${error.message}`;
    }
    return () => model.off("msg:custom", onMessage);
  }
  return { render };
}

/** Kernel buffers arrive as DataViews that need not be aligned. */
function toFloats(buffer) {
  const view = buffer instanceof DataView ? buffer : new DataView(buffer);
  const values = new Float32Array(view.byteLength / 4);
  for (let i = 0; i < values.length; i += 1) values[i] = view.getFloat32(4 * i, true);
  return values;
}
