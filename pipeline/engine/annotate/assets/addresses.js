// URLs for other annotators, which only the owner, who started the server, can create.

import { byId, make } from "./dom.js";
import { postJson } from "./server.js";

/** Fill the section, and show it to the owner. */
export function setUpAddresses({ owner }) {
  const section = byId("addresses");
  section.hidden = !owner;
  if (!owner) return;
  const name = make("input", { id: "address-name", maxLength: 100, autocomplete: "off" });
  const address = make("input", { id: "address", readOnly: true, hidden: true });
  address.setAttribute("aria-label", "The new address");
  const said = make("p", { id: "address-notice" });
  said.setAttribute("role", "status");
  const form = make(
    "form",
    {},
    make("label", { htmlFor: name.id }, "Name"),
    name,
    make("button", { type: "submit" }, "Create address"),
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (name.value.trim()) show(name.value.trim(), address, said);
    else name.focus();
  });
  address.addEventListener("focus", () => address.select());
  const title = make("h2", { id: "addresses-title" }, "Address for another person");
  const text = "It works once, in one browser. Send it to that person privately.";
  section.replaceChildren(title, make("p", {}, text), form, said, address);
}

async function show(annotator, address, said) {
  address.hidden = true;
  try {
    const made = await postJson("/api/address", { annotator });
    [address.value, address.hidden] = [made.address, false];
    said.textContent = `Address for ${made.annotator}. Earlier unused addresses no longer work.`;
    address.focus();
  } catch (error) {
    said.textContent = error.message;
  }
}
