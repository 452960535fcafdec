// Host of the live figures in the built book: finds them, starts them, answers with the payload's own models.

import { loadPayload } from "./payload.js";
import { mlpPredict } from "./mlp.js";

const here = (path) => new URL(path, import.meta.url);

/** A module: again under another address, since a browser may remember that it could not be loaded. */
const load = (name, tries) => import(`./${name}.js${tries ? `?again=${tries}` : ""}`);

/** What a figure gets to see of its host. */
async function makeContext(payloadName, options, tries) {
  const payload = await loadPayload(here(`./payloads/${payloadName}.json`));
  let predict = mlpPredict(payload.models);
  if (payload.files.onnx) {
    const { onnxPredict } = await load("onnx", tries);
    predict = await onnxPredict(here(`./payloads/${payload.files.onnx}`));
  }
  return {
    payload,
    predict,
    options,
    part: (key) => makeContext(payload.parts[key], options, tries),
    file: (role) => here(`./payloads/${payload.files[role]}`).href,
  };
}

// A figure that fails after its network was loaded finds it there when it is started again.
const contexts = new WeakMap();

/** Take a figure from idle to ready, or to failed with a message. */
export async function start(root) {
  if (root.dataset.state === "loading" || root.dataset.state === "ready") return;
  const status = root.querySelector(".lf-status");
  const body = root.querySelector(".lf-body");
  root.dataset.state = "loading";
  status.textContent = "Loading the model …";
  const asked = root.contains(document.activeElement);
  const starter = root.querySelector(".lf-start");
  starter.disabled = true;
  const tries = Number(root.dataset.tries ?? 0);
  if (!contexts.has(root)) contexts.set(root, makeContext(root.dataset.payload, JSON.parse(root.dataset.options || "{}"), tries));
  contexts.get(root).catch(() => contexts.delete(root));
  try {
    const [module, context] = await Promise.all([load(root.dataset.liveFigure, tries), contexts.get(root)]);
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
    root.dataset.tries = tries + 1;
    if (tries) contexts.delete(root); // what has failed twice is loaded anew
    status.textContent = `This figure could not start: ${error.message}`;
    starter.disabled = false;
    starter.hidden = false;
    if (root.dataset.start !== "button") starter.textContent = "Try again";
  }
}

function attach(root) {
  const starter = root.querySelector(".lf-start");
  starter.addEventListener("click", () => start(root));
  if (root.dataset.start === "button") {
    starter.hidden = false;
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
