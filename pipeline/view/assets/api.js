// Asks the viewer's server; its answers are JSON, and its errors are sentences.

export async function get(path, parameters = {}) {
  const query = new URLSearchParams(parameters).toString();
  let response;
  try {
    response = await fetch(query ? `${path}?${query}` : path);
  } catch {
    throw new Error("The viewer does not answer: is `segmint view` still running?");
  }
  const text = await response.text();
  let answer = null;
  try {
    answer = JSON.parse(text);
  } catch {
    // said below
  }
  if (!response.ok) throw new Error(answer?.error ?? (text || `The viewer answers with ${response.status}.`));
  return answer;
}
