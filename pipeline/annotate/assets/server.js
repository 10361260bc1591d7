// Requests to the annotator's server. Answers are JSON, errors are sentences.

export const AGAIN_MS = 3000; // after which what was not heard is tried again

/** The server does not answer. Nothing is lost: the same request can be made again. */
export class GoneError extends Error {}

/** The server refused: `status`, and its answer as `body`. */
export class RefusedError extends Error {
  constructor(message, status, body) {
    super(message);
    this.status = status;
    this.body = body;
  }
}

const GONE = "The server does not answer. Is `segmint annotate` still running? Your work is kept in this browser.";
const STRANGER =
  "The server does not know this browser any more: it was started again. Open the address that `segmint annotate` " +
  "printed. Your work is kept in this browser.";

let annotator = null;

/** Sends all requests from now on as this annotator's: the server refuses them once the browser is another's. */
export function actAs(name) {
  annotator = name;
}

export const getJson = (path) => request("GET", path);
export const postJson = (path, body = {}) => request("POST", path, body);
export const putJson = (path, body) => request("PUT", path, body);

async function request(method, path, body = undefined) {
  const options = { method, headers: {} };
  if (annotator !== null) options.headers["x-segmint-annotator"] = encodeURIComponent(annotator);
  if (body !== undefined) {
    Object.assign(options.headers, { "content-type": "application/json", "x-segmint": "1" });
    options.body = JSON.stringify(body);
  }
  let response;
  let text;
  try {
    response = await fetch(path, options);
    text = await response.text();
  } catch {
    throw new GoneError(GONE);
  }
  const answer = parsed(text);
  if (response.ok) return answer;
  if ([502, 503, 504].includes(response.status)) throw new GoneError(answer?.error ?? GONE);
  if (response.status === 403 && answer?.annotator) throw new RefusedError(changedHands(answer.annotator), 403, answer);
  if (response.status === 403) throw new RefusedError(STRANGER, 403, answer);
  const said = answer?.error ?? (text || `The server answered with status ${response.status}.`);
  throw new RefusedError(said, response.status, answer);
}

const changedHands = (name) =>
  `The address of ${name} was opened in this browser: this page is of ${annotator} and saves nothing any more. ` +
  `Give each person a browser of their own. Your work is kept here; a new address of ${annotator} opens it again.`;

/**
 * Does a request again until the server answers, as long as `isWanted()`; returns its answer, or undefined if it was not
 * wanted any more. `problem(error or null)` hears what is wrong; a refusal is thrown, too.
 */
export async function untilHeard(request, problem, isWanted = () => true) {
  for (;;) {
    try {
      const answer = await request();
      if (isWanted()) problem(null);
      return answer;
    } catch (error) {
      if (!isWanted()) return undefined;
      problem(error);
      if (!(error instanceof GoneError)) throw error;
    }
    await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
    if (!isWanted()) return undefined;
  }
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}
