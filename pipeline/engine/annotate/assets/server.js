// Requests to the annotator's server. Responses are JSON, errors are sentences.

export const AGAIN_MS = 3000; // before a retry
const LIMIT_MS = 20_000; // without data from the server, after which a request is aborted
const BYTES_A_MS = 50; // upload allowance, so that slow connections get more time

/** Error if the server doesn't respond. Nothing is lost, because the same request can be retried. */
export class GoneError extends Error {}

/** Error response of the server, with its `status` and `body`. */
export class RefusedError extends Error {
  constructor(message, status, body) {
    super(message);
    this.status = status;
    this.body = body;
  }
}

const GONE = "The server isn't responding. Is `segmint annotate` still running? Your work is kept in this browser.";
const LATE =
  `The server hasn't responded for ${LIMIT_MS / 1000} seconds. The page keeps trying, and you can keep working. Your ` +
  "work is kept in this browser.";
const STRANGER =
  "The server restarted and no longer recognizes this browser. Open the address that `segmint annotate` " +
  "printed. Your work is kept in this browser.";

let annotator = null;

/** Send all later requests as this annotator; the server rejects them once the browser belongs to another one. */
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
  const said = answer?.error ?? (text || `The server responded with status ${response.status}.`);
  throw new RefusedError(said, response.status, answer);
}

/** Return a response with its text. A server that is silent for too long counts as not responding. */
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

/** Return the text of a response, calling `came()` for each part of it. */
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
  `The address of ${name} was opened in this browser, so this page of ${annotator} no longer saves. Use a ` +
  `separate browser for each person. Your work is kept here. A new address for ${annotator} opens it again.`;

/**
 * Retry a request while the server doesn't respond and `isWanted()`; return the response, or undefined if no longer
 * wanted. `problem(error or null)` receives the errors; error responses are also thrown.
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
