// Requests to the viewer's server. Responses are JSON; errors are sentences.

export async function get(path, parameters = {}) {
  const query = new URLSearchParams(parameters).toString();
  let response;
  try {
    response = await fetch(query ? `${path}?${query}` : path);
  } catch {
    throw new Error("The viewer isn't responding. Is `segmint view` still running?");
  }
  const text = await response.text();
  let answer = null;
  try {
    answer = JSON.parse(text);
  } catch {
    // handled below
  }
  if (!response.ok) throw new Error(answer?.error ?? (text || `The viewer responded with status ${response.status}.`));
  return answer;
}
