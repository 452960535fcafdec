// Host of the live figures in the built book: finds them, starts them, answers with the payload's own models.

import { loadPayload } from "./payload.js";
import { mlpPredict } from "./mlp.js";

const here = (path) => new URL(path, import.meta.url);

/** What a figure gets to see of its host. */
async function makeContext(payloadName, options) {
  const payload = await loadPayload(here(`./payloads/${payloadName}.json`));
  let predict = mlpPredict(payload.models);
  if (payload.files.onnx) {
    const { onnxPredict } = await import("./onnx.js");
    predict = await onnxPredict(here(`./payloads/${payload.files.onnx}`));
  }
  return {
    payload,
    predict,
    options,
    part: (key) => makeContext(payload.parts[key], options),
    file: (role) => here(`./payloads/${payload.files[role]}`).href,
  };
}

/** Take a figure from idle to ready, or to failed with a message. */
export async function start(root) {
  if (root.dataset.state === "loading" || root.dataset.state === "ready") return;
  const status = root.querySelector(".lf-status");
  const body = root.querySelector(".lf-body");
  root.dataset.state = "loading";
  status.textContent = "Loading the model …";
  const asked = root.contains(document.activeElement);
  root.querySelector(".lf-start")?.setAttribute("disabled", "");
  try {
    const [module, context] = await Promise.all([
      import(`./${root.dataset.liveFigure}.js`),
      makeContext(root.dataset.payload, JSON.parse(root.dataset.options || "{}")),
    ]);
    const stage = document.createElement("div");
    stage.className = "lf-stage";
    await module.mount(stage, context);
    body.replaceChildren(stage);
    status.textContent = "";
    root.dataset.state = "ready";
    // Who started it with the keyboard goes on in the figure: the button that had the focus is gone.
    if (asked && (document.activeElement === document.body || root.contains(document.activeElement))) {
      stage.querySelector("[tabindex], input, select, button")?.focus({ preventScroll: true });
    }
  } catch (error) {
    root.dataset.state = "failed";
    status.textContent = `This figure could not start: ${error.message}`;
    root.querySelector(".lf-start")?.removeAttribute("disabled");
  }
}

function attach(root) {
  if (root.dataset.start === "button") {
    root.querySelector(".lf-start").hidden = false;
    root.querySelector(".lf-start").addEventListener("click", () => start(root));
    return;
  }
  const observer = new IntersectionObserver(
    (entries) => {
      if (!entries.some((entry) => entry.isIntersecting)) return;
      observer.disconnect();
      start(root);
    },
    { rootMargin: "400px" },
  );
  observer.observe(root);
}

document.querySelectorAll("[data-live-figure]").forEach(attach);
