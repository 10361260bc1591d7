// Page of the catalog rows that were rejected, with their reasons. The URL's fragment selects one reason.

import { get } from "./api.js";
import { byId, counted, make, showProblem, whole } from "./dom.js";

const CHANGED = "This row's shard has changed since the viewer was started. Restart the viewer.";

export class RejectedPage {
  #asked = 0; // responses to earlier requests are ignored
  #reason;
  #next = null;

  constructor() {
    byId("rejected-more").addEventListener("click", () => this.#add().catch(showProblem));
  }

  /** Show the first rows with a reason, or of all reasons if it is undefined. */
  async show(reason) {
    this.#reason = reason;
    byId("rejected-rows").replaceChildren();
    byId("rejected-more").hidden = true;
    byId("rejected-title").focus();
    const { reasons } = await this.#add({});
    if (reason !== this.#reason) return;
    const total = reasons.reduce((sum, { rows }) => sum + rows, 0);
    byId("rejected-count").textContent = total
      ? `${counted(total, "catalog row")} rejected. segmint shows no pictures of rejected rows.`
      : "No catalog rows were rejected.";
    const links = [{ rows: total }, ...reasons].map(({ reason: each, rows }) => {
      const link = make("a", { href: each ? `#rejected/${each}` : "#rejected" }, `${each ?? "all reasons"} (${whole(rows)})`);
      if (each === reason) link.setAttribute("aria-current", "true");
      return make("li", {}, link);
    });
    byId("reasons").replaceChildren(...links);
    byId("reasons").hidden = byId("rejected-table").hidden = total === 0;
  }

  async #add(from = { after: this.#next }) {
    const asked = ++this.#asked;
    const page = await get("/api/rejects", { ...from, ...(this.#reason && { reason: this.#reason }) });
    if (asked !== this.#asked) return page;
    byId("rejected-rows").append(...page.rows.map(row));
    this.#next = page.next;
    byId("rejected-more").hidden = page.next === null;
    return page;
  }
}

function row({ id, image_id: name, stage, reason, detail }) {
  const why = [reason ?? "", make("span", {}, stage ?? "")];
  const cells = [[name ?? ""], why, [reason === null ? CHANGED : (detail ?? "")]];
  const head = make("th", { scope: "row" }, String(id));
  return make("tr", {}, head, ...cells.map((cell) => make("td", {}, ...cell)));
}
