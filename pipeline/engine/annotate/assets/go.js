// Dialog that opens an image by its image_id or number.

import { byId } from "./dom.js";
import { getJson } from "./server.js";

/** Make the dialog work. */
export function setUpGo() {
  byId("go-cancel").addEventListener("click", () => byId("go").close());
  byId("go-form").addEventListener("submit", (event) => {
    event.preventDefault();
    open(byId("go-text").value);
  });
}

export function askForImage() {
  byId("go-problem").textContent = "";
  byId("go").showModal();
  byId("go-text").select();
}

async function open(text) {
  try {
    const { image } = await getJson(`/api/find?image=${encodeURIComponent(text)}`);
    if (byId("go").open) location.hash = `#image/${image}`;
    byId("go").close();
  } catch (error) {
    byId("go-problem").textContent = error.message;
  }
}
