// DOM helpers. Values from a dataset are always inserted as text, never as markup.

export const byId = (id) => document.getElementById(id);

/** Creates an element with properties and children; strings become text nodes. */
export function make(name, properties = {}, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
}

/** Creates an SVG element with attributes. */
export function makeSvg(name, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, String(value));
  return element;
}

export function showProblem(error) {
  byId("problem").textContent = error?.message ?? "";
  byId("problem").hidden = !error;
}

export const whole = (number) => number.toLocaleString("en-US");

/** Return a predicted IoU to show: at most 1, the highest possible IoU, which a decoder's estimate may exceed. */
export const shownIou = (predicted) => Math.min(1, predicted);

export const counted = (number, noun) => `${whole(number)} ${noun}${number === 1 ? "" : "s"}`;
