"""Faults of the annotators' page that `make mutants` plants."""

from tests.support.mutant import Mutant

_ASSETS = "pipeline/engine/annotate/assets"
_VIEW = "tests/pipeline/engine/annotate/test_page_view.py"
_MODULES = "tests/pipeline/engine/annotate/test_page_modules.py"

PAGE_MUTANTS = (
    Mutant(
        "undo does not wait for the gestures before it",
        f"{_ASSETS}/editor.js",
        "return this.#do(() => this.history.undo() && this.#kept());",
        "return this.image && this.history.undo() && this.#kept();",
        _VIEW,
    ),
    Mutant(
        "delete on a new mask takes one that was selected before",
        f"{_ASSETS}/editor.js",
        "const chosen = active === null ? this.#selected : active.of;",
        "const chosen = active?.of ?? this.#selected;",
        _VIEW,
    ),
    Mutant(
        "what was changed during a save goes with its draft",
        f"{_ASSETS}/editor.js",
        "if (this.state === state && sameNote(this.note, note)) {",
        "if (true) {",
        _VIEW,
    ),
    Mutant(
        "a stroke begun on one image ends on the next",
        f"{_ASSETS}/annotate.js",
        "    this.tools.cancel(); // a",
        "    // a",
        _VIEW,
    ),
    Mutant(
        "a draft forgets the times of what was saved elsewhere",
        f"{_ASSETS}/restoring.js",
        "{ ...times.masks, ...saved.masks } }",
        "times.masks }",
        _MODULES,
    ),
    Mutant(
        "what was merged meanwhile is there twice",
        f"{_ASSETS}/submission.js",
        "!there.has(mask.counts) && (",
        "(",
        _MODULES,
    ),
    Mutant(
        "a draft waits for the one before, and a reload loses it",
        f"{_ASSETS}/drafts.js",
        'await this.#request("readwrite", (store) => store.put(draft, key));',
        'await (this.l = Promise.all([this.l]).then(() => this.#request("readwrite", (s) => s.put(draft, key))));',
        _MODULES,
    ),
    Mutant(
        "a window writes over the draft that another one keeps",
        f"{_ASSETS}/keeping.js",
        "this.#drafts.shared = !alone;",
        "this.#drafts.shared = false;",
        _VIEW,
    ),
    Mutant(
        "the time without a gesture goes with a crash",
        f"{_ASSETS}/guide.js",
        "    this.#editor.keeping.keepTime();\n",
        "",
        _VIEW,
    ),
    Mutant(
        "a palm beside a pen is a finger",
        f"{_ASSETS}/pointers.js",
        'return event.pointerType === "touch" && (',
        "return false && (",
        "tests/pipeline/engine/annotate/test_page_browser.py",
    ),
)
