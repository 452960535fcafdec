// Host of the live figures in Jupyter, VS Code and Colab: an anywidget, answered by the kernel's own model.

import { h, modified } from "./frame.js";
import { parsePayload } from "./payload.js";

// After so many milliseconds without an answer the figure says what it waits for.
const PATIENCE = 1000;

/** Turn a figure's `mount` into what anywidget expects. */
export function widgetFor(mount) {
  async function render({ model, el }) {
    const waiting = new Map();
    let serial = 0;
    const stage = h("div", { class: "lf-stage" });
    const status = h("p", { class: "lf-status", role: "status" });
    const root = h(
      "div",
      { class: "live-figure", "data-live-figure": model.get("figure"), "data-state": "loading", onkeydown: keep },
      stage,
      status,
    );
    const say = (text, trouble = false) => {
      if (status.textContent !== text) status.textContent = text;
      status.toggleAttribute("data-trouble", trouble);
    };

    const onMessage = (message, buffers) => {
      const question = waiting.get(message.id);
      if (!question) return;
      waiting.delete(message.id);
      clearTimeout(question.timer);
      if (message.error) {
        // A figure that is ready has nobody left to tell.
        say(`The kernel could not answer: ${message.error}`, true);
        question.reject(new Error(message.error));
      } else {
        say("");
        question.resolve(toFloats(buffers[0]));
      }
    };
    model.on("msg:custom", onMessage);

    const contextFor = (payload, part) => ({
      payload,
      options: model.get("options"),
      tells: true, // of every question that the kernel could not answer
      predict: (name, inputs, shape = null) =>
        new Promise((resolve, reject) => {
          serial += 1;
          const id = `${Date.now()}-${serial}-${Math.random()}`;
          const timer = setTimeout(() => say("Waiting for the kernel, which is busy or was stopped …"), PATIENCE);
          waiting.set(id, { resolve, reject, timer });
          model.send({ id, model: name, part, shape }, undefined, [Float32Array.from(inputs).buffer]);
        }),
      part: async (key) => contextFor(parsePayload(model.get("part_payloads")[key], key), key),
      file: (role) => model.get("file_urls")[role],
    });

    el.append(root);
    try {
      await mount(stage, contextFor(parsePayload(model.get("payload")), null));
      root.dataset.state = "ready";
    } catch (error) {
      root.dataset.state = "failed";
      stage.replaceChildren();
      say(`This figure could not start: ${error.message}`);
    }
    return () => {
      model.off("msg:custom", onMessage);
      for (const { timer } of waiting.values()) clearTimeout(timer);
      waiting.clear();
    };
  }
  return { render };
}

/** Plain keys are the figure's, not the notebook's: in JupyterLab "d d" would delete the cell around it. */
function keep(event) {
  if (!modified(event)) event.stopPropagation();
}

/** Kernel buffers arrive as DataViews that need not be aligned. */
function toFloats(buffer) {
  const view = buffer instanceof DataView ? buffer : new DataView(buffer);
  const values = new Float32Array(view.byteLength / 4);
  for (let i = 0; i < values.length; i += 1) values[i] = view.getFloat32(4 * i, true);
  return values;
}
