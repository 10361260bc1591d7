// Requests to the annotator's server. Responses are JSON, errors are sentences.

export const AGAIN_MS = 3000; // after which what was not heard is tried again
const LIMIT_MS = 20_000; // without a sign of the server, after which a request is given up
const BYTES_A_MS = 50; // of what is sent: a slow line gets its time

/** The server does not answer. Nothing is lost: the same request can be made again. */
export class GoneError extends Error {}

/** The server refused: `status`, and its response as `body`. */
export class RefusedError extends Error {
  constructor(message, status, body) {
    super(message);
    this.status = status;
    this.body = body;
  }
}

const GONE = "The server does not answer. Is `segmint annotate` still running? Your work is kept in this browser.";
const LATE =
  `The server has not answered for ${LIMIT_MS / 1000} seconds. It is asked again; you can go on meanwhile. Your work is ` +
  "kept in this browser.";
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
  const [response, text] = await heard(path, options);
  const answer = parsed(text);
  if (response.ok) return answer;
  if ([502, 503, 504].includes(response.status)) throw new GoneError(answer?.error ?? GONE);
  if (response.status === 403 && answer?.annotator) throw new RefusedError(changedHands(answer.annotator), 403, answer);
  if (response.status === 403) throw new RefusedError(STRANGER, 403, answer);
  const said = answer?.error ?? (text || `The server answered with status ${response.status}.`);
  throw new RefusedError(said, response.status, answer);
}

/** A response with its text. A server that is silent for too long is one that does not answer. */
async function heard(path, options) {
  const giveUp = new AbortController();
  let timer = 0;
  const wait = (more = 0) => {
    clearTimeout(timer);
    timer = setTimeout(() => giveUp.abort(), LIMIT_MS + more);
  };
  wait((options.body?.length ?? 0) / BYTES_A_MS);
  try {
    const response = await fetch(path, { ...options, signal: giveUp.signal });
    return [response, await textOf(response, wait)];
  } catch {
    throw new GoneError(giveUp.signal.aborted ? LATE : GONE);
  } finally {
    clearTimeout(timer);
  }
}

/** The text of a response; `came()` is called with each part of it. */
async function textOf(response, came) {
  const [reader, decoder] = [response.body?.getReader(), new TextDecoder()];
  let text = "";
  while (reader !== undefined) {
    came();
    const { done, value } = await reader.read();
    if (done) break;
    text += decoder.decode(value, { stream: true });
  }
  return text + decoder.decode();
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
