// Table rows as description lists of all non-null columns, in order.

import { counted, make, shownIou, whole } from "./dom.js";

const LEFT_OUT = new Set(["segmentation", "ordinal", "id", "image_id", "shard", "mask_count"]);

const NUMBERS = new Set(["annotation_id", "parent", "container"]);

const NAMES = {
  annotation_id: "Annotation",
  source_url: "Page",
  uri: "URI",
  bbox: "Box",
  point_coords: "Prompt",
  after_nms1: "After NMS in crops",
  after_nms2: "After NMS between crops",
};

/**
 * Return the elements of a row's list: a term and its description for each column. `linkOf(name, value)` returns the URL
 * that a description links to, or null.
 */
export function detailsOf(row, linkOf = () => null) {
  return Object.entries(row).flatMap(([name, value]) => {
    if (LEFT_OUT.has(name) || value === null || value === undefined) return [];
    if (name === "point_coords" && value.length === 0) return []; // `prompts` contains the points of these masks
    if (isStruct(value)) return [make("dt", { className: "group" }, nameOf(name)), make("dd"), ...detailsOf(value)];
    const [text, href] = [textOf(name, value), linkOf(name, value)];
    return [make("dt", {}, nameOf(name)), make("dd", {}, href === null ? text : make("a", { href }, text))];
  });
}

const known = (value) => Object.entries(value).filter(([, each]) => each !== null);

const isStruct = (value) => typeof value === "object" && !Array.isArray(value);

function nameOf(column) {
  const words = column.replaceAll("_", " ").replace("iou", "IoU").replace("sha256", "SHA-256");
  return NAMES[column] ?? words[0].toUpperCase() + words.slice(1);
}

function textOf(name, value) {
  if (NUMBERS.has(name)) return String(value);
  if (name.endsWith("predicted_iou")) return textOf("", shownIou(value));
  if (name === "area") return `${whole(value)} px`;
  if (name === "regions") return regions(value);
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value === "number") return Number.isInteger(value) ? whole(value) : String(Number(value.toPrecision(5)));
  if (Array.isArray(value)) return value.map((item) => textOf("", item)).join(", ") || "none";
  if (typeof value === "object" && value !== null) return known(value).map((each) => each.join(" ")).join(" ");
  return String(value);
}

function regions(found) {
  const numbers = new Map();
  for (const region of found) numbers.set(region.kind, (numbers.get(region.kind) ?? 0) + 1);
  return [...numbers].map(([kind, number]) => counted(number, kind)).join(", ") || "none";
}
