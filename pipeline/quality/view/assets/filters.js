// Filter form, whose state is the query of the page's URL, so that a URL identifies what is shown.

import { byId, make, whole } from "./dom.js";

const UNKNOWN = "unknown";
const WAIT_MS = 250;
const CHOICES = ["country", "license", "provider"];
const NOT_FILTERS = new Set(["sort", "descending", "after"]);

/** Return the filters in the page's URL in the form that the server expects. */
export const asked = () => Object.fromEntries(new URLSearchParams(location.search));

/** Return the URL of the grid with only these filters. */
export const addressOf = (filters) => {
  const query = new URLSearchParams(filters).toString();
  return query ? `/?${query}` : "/";
};

/** Return the URL of all images with a value in a filterable column, or null for other columns. */
export const addressOfValue = (name, value) => (CHOICES.includes(name) ? addressOf({ [name]: value }) : null);

/** Show the filters in the page's URL, each as a link that removes it. */
function showActive() {
  const query = Object.entries(asked()).filter(([name]) => name !== "after");
  const links = query.flatMap(([name, value]) => {
    if (NOT_FILTERS.has(name)) return [];
    const href = addressOf(query.filter(([other]) => other !== name));
    const words = name === UNKNOWN ? `unknown ${value.replaceAll(",", ", ")}` : `${wordsOf(name)}: ${value}`;
    // No aria-label, because its text would duplicate that of the filter's field.
    const link = make("a", { href, title: "Without this filter" }, make("span", {}, words), " ×");
    return [make("li", {}, link)];
  });
  byId("active").replaceChildren(...links);
  byId("active").hidden = links.length === 0;
}

function wordsOf(name) {
  const [, column, end] = /^(.*?)(?:_(min|max))?$/.exec(name);
  const words = column.replaceAll("_", " ").replace("iou", "IoU");
  return end ? `${words}, at ${end === "min" ? "least" : "most"}` : words;
}

/** Fill the form from the dataset's values and the URL; call `changed` when the URL changes. */
export function setUpFilters(dataset, changed) {
  const form = byId("filters");
  for (const name of CHOICES) fillChoice(form.elements[name], dataset.choices[name]);
  fillChoice(form.elements.label, dataset.labels);
  form.elements.label.disabled = dataset.labels.length === 0;
  byId("label-label").hidden = dataset.labels.length === 0;
  fillFindings(form.elements.finding, dataset.findings);
  byId("finding-label").hidden = dataset.findings.length === 0;
  for (const [name, ends] of Object.entries(dataset.ranges)) {
    ends.forEach((end, place) => {
      const input = form.elements[`${name}_${place ? "max" : "min"}`];
      if (end !== null) input.placeholder = short(end, place);
      else input.disabled = true;
    });
  }
  readAddress(form);
  showActive();
  let waiting;
  let shown = location.search;
  const take = () => {
    shown = location.search;
    showActive();
    changed();
  };
  const change = (wait) => {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      const query = writeAddress(form);
      if (query === location.search.slice(1)) return;
      const address = (query ? `?${query}` : location.pathname) + location.hash;
      if (wait) history.replaceState(null, "", address); // typing doesn't add history entries
      else history.pushState(null, "", address);
      take();
    }, wait);
  };
  addEventListener("popstate", () => {
    if (location.search === shown) return;
    readAddress(form);
    take();
  });
  form.addEventListener("input", (event) => change(event.target.tagName === "SELECT" ? 0 : WAIT_MS));
  form.addEventListener("reset", () => change(0)); // the form is reset only after this event
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    change(0);
  });
  const wide = matchMedia("(min-width: 60rem)");
  const open = () => (byId("filters-box").open = wide.matches);
  wide.addEventListener("change", open);
  open();
}

function fillChoice(select, values) {
  const options = values.map(({ value, images }) => {
    const option = make("option", {}, `${value ?? "unknown"} (${whole(images)})`);
    option.value = value ?? "";
    if (value === null) option.dataset.choice = UNKNOWN;
    return option;
  });
  select.replaceChildren(make("option", { value: "" }, "any"), ...options);
  select.disabled = values.length < 2;
}

function fillFindings(select, findings) {
  const options = findings.map(({ code, images }) => {
    const label = `${code.replaceAll("_", " ")} (${whole(images)})`;
    return make("option", { value: code }, label);
  });
  select.replaceChildren(
    make("option", { value: "" }, "all images"),
    make("option", { value: "any" }, "with any finding"),
    ...options,
  );
}

function writeAddress(form) {
  const query = new URLSearchParams();
  const unknown = [];
  for (const element of form.elements) {
    if (!element.name || element.name === "order" || element.disabled) continue;
    if (element.tagName === "SELECT" && element.selectedOptions[0]?.dataset.choice) unknown.push(element.name);
    else if (element.value !== "" && element.validity.valid) query.set(element.name, element.value);
  }
  if (unknown.length) query.set(UNKNOWN, unknown.join(","));
  const [sort, direction] = form.elements.order.value.split(":");
  if (sort !== "id") query.set("sort", sort);
  if (direction) query.set("descending", "1");
  return query.toString();
}

function readAddress(form) {
  const query = new URLSearchParams(location.search);
  const unknown = (query.get(UNKNOWN) ?? "").split(",");
  for (const element of form.elements) {
    if (!element.name || element.name === "order") continue;
    element.value = query.get(element.name) ?? "";
    if (!unknown.includes(element.name)) continue;
    for (const option of element.options) option.selected = option.dataset.choice === UNKNOWN;
  }
  form.elements.order.value = (query.get("sort") ?? "id") + (query.get("descending") === "1" ? ":down" : "");
}

/** Return a limit of a range, rounded outward so that it includes every image. */
function short(number, upwards) {
  if (Number.isInteger(number)) return String(number);
  return String((upwards ? Math.ceil(number * 1000) : Math.floor(number * 1000)) / 1000);
}
