// What every live figure is made of: elements, controls, read-outs, dragging. No figure knows its host.

const SVG = "http://www.w3.org/2000/svg";
let serial = 0;

/** A fresh id, unique on the page. */
export const freshId = (stem) => `lf-${stem}-${(serial += 1)}`;

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child != null));
  return element;
}

/** An HTML element: `h("p", {class: "note"}, "text")`. */
export const h = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);

/** An SVG element. */
export const svg = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS(SVG, tag), attributes, children);

/** Set several attributes at once. */
export function set(element, attributes) {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
}

/** A row of radio buttons that looks like one switch; returns the field with `.set(key)`. */
export function segmented(legend, choices, value, onChange) {
  const group = freshId("choice");
  const inputs = choices.map(([key]) =>
    h("input", {
      type: "radio",
      name: group,
      value: key,
      checked: key === value,
      onchange: () => onChange(key),
    }),
  );
  const field = h(
    "fieldset",
    { class: "lf-segmented" },
    h("legend", {}, legend),
    h("div", { class: "lf-segments" }, ...choices.map(([, label], i) => h("label", {}, inputs[i], h("span", {}, label)))),
  );
  field.set = (key) => {
    for (const input of inputs) input.checked = input.value === key;
  };
  return field;
}

/** A labelled drop-down; returns the field with `.set(key)`. */
export function select(label, choices, value, onChange) {
  const id = freshId("select");
  const input = h(
    "select",
    { id, onchange: () => onChange(input.value) },
    ...choices.map(([key, text]) => h("option", { value: key, selected: key === value }, text)),
  );
  const field = h("div", { class: "lf-field" }, h("label", { for: id }, label), input);
  field.set = (key) => {
    input.value = key;
  };
  return field;
}

/** A labelled slider that shows its value; returns the field with `.set(value)`. */
export function slider(label, { min, max, step, value, format = String, name = null }, onInput) {
  const id = freshId("slider");
  // An output is a live region by itself, and the slider has said its value already.
  const shown = h("output", { for: id, "data-readout": name, "aria-live": "off" }, format(value));
  const input = h("input", {
    id,
    type: "range",
    min,
    max,
    step,
    value,
    "aria-valuetext": format(value),
    oninput: () => {
      show(Number(input.value));
      onInput(Number(input.value));
    },
  });
  const show = (now) => {
    shown.textContent = format(now);
    input.setAttribute("aria-valuetext", format(now));
  };
  const field = h("div", { class: "lf-field lf-slider" }, h("label", { for: id }, label), shown, input);
  field.set = (now) => {
    input.value = now;
    show(now);
  };
  return field;
}

/** A plain button. */
export const button = (label, onClick, attributes = {}) =>
  h("button", { type: "button", class: "lf-button", onclick: onClick, ...attributes }, label);

/** A labelled check box. */
export const checkbox = (label, checked, onChange) =>
  h("label", { class: "lf-check" }, h("input", { type: "checkbox", checked, onchange: (event) => onChange(event.target.checked) }), label);

/** Read-outs by name: `[["distance", "Distance"], ...]`; returns the list with `.show(name, text)`. */
export function readouts(entries) {
  const cells = new Map(entries.map(([name]) => [name, h("dd", { "data-readout": name }, "–")]));
  const list = h(
    "dl",
    { class: "lf-readouts" },
    ...entries.map(([name, label]) => h("div", {}, h("dt", {}, label), cells.get(name))),
  );
  list.show = (name, text) => {
    cells.get(name).textContent = text;
  };
  return list;
}

/** A live region that speaks once the reader pauses, so that dragging does not flood a screen reader. */
export function announcer(delay = 600) {
  const region = h("p", { class: "lf-visually-hidden", role: "status", "aria-live": "polite" });
  let timer = 0;
  region.say = (text) => {
    clearTimeout(timer);
    timer = setTimeout(() => {
      region.textContent = text;
    }, delay);
  };
  return region;
}

/** A line for what went wrong: seen and said at once, and without room while it is empty. */
export const alarm = () => h("p", { class: "lf-trouble", role: "alert" });

/** Whether a key is pressed for the browser or the notebook, as Alt + Left is to go back: figures leave it alone. */
export const modified = ({ ctrlKey, metaKey, altKey }) => ctrlKey || metaKey || altKey;

/**
 * Run `task` for the newest request only: while one answer is being computed, later requests replace each
 * other, so a slow model never queues up work nobody waits for. A failure is thrown unless a newer request works;
 * once there has been an answer, nobody waits for it, and the alarm `trouble`, if there is one, tells of it.
 */
export function latest(task, trouble = null) {
  let waiting = null;
  let busy = false;
  let answered = false;
  let told = false;
  return async (...request) => {
    waiting = request;
    if (busy) return;
    busy = true;
    let failure = null;
    while (waiting) {
      const next = waiting;
      waiting = null;
      try {
        await task(...next);
        if (told) trouble.textContent = "";
        [failure, answered, told] = [null, true, false];
      } catch (error) {
        failure = { error };
        told = answered && trouble !== null;
        if (told) trouble.textContent = `The network gave no answer: ${error.message}`;
      }
    }
    busy = false;
    if (failure && !told) throw failure.error;
  };
}

/** Pointer dragging (mouse, pen, touch) on `element`; `onPoint(event, "down" | "move" | "up")`. */
export function draggable(element, onPoint) {
  let held = null;
  const release = (event) => {
    if (event.pointerId !== held) return;
    held = null;
    // A drag that the browser breaks off ends where it was: its event says no place.
    if (event.type === "pointerup") onPoint(event, "up");
  };
  element.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || held !== null) return;
    held = event.pointerId;
    element.setPointerCapture(held);
    onPoint(event, "down");
    event.preventDefault();
  });
  element.addEventListener("pointermove", (event) => {
    if (event.pointerId === held) onPoint(event, "move");
  });
  element.addEventListener("pointerup", release);
  element.addEventListener("pointercancel", release);
}

/** Minus with a real minus sign, fixed digits: read-outs do not jump about. */
export const fixed = (value, digits = 3) => value.toFixed(digits).replace("-", "−");

/** The value of a CSS custom property where `element` stands. */
export const cssValue = (element, name) => getComputedStyle(element).getPropertyValue(name).trim();
