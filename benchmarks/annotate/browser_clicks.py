"""Latency of clicks on the annotator's page in a real browser, from pointer event to the frame that shows the mask.

In the page, a click starts at the browser's timestamp of its `pointerdown` event. It ends after the animation frame
that follows the drawing of the active mask.
"""

import shutil
from dataclasses import dataclass
from typing import Any

_ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
_WAIT_MS = 30_000

# `window.shown` is a promise of the last click's time. It resolves to null if no mask is drawn, because the model found
# none or the same one as before. Awaiting the promise avoids polling, which would keep the page busy.
_WATCH = """() => {
    let begun = null;
    let tell = null;
    const end = (time) => { begun = null; tell(time); };
    addEventListener("pointerdown", (event) => {
        begun = event.timeStamp;
        window.shown = new Promise((resolve) => { tell = resolve; });
    }, { capture: true });
    const draw = CanvasRenderingContext2D.prototype.putImageData;
    CanvasRenderingContext2D.prototype.putImageData = function (...given) {
        draw.apply(this, given);
        if (this.canvas.id !== "active-mask" || begun === null) return;
        const since = begun;
        begun = null;
        requestAnimationFrame(() => {
            const { port1, port2 } = new MessageChannel();
            port1.onmessage = () => end(performance.now() - since);
            port2.postMessage(null);
        });
    };
    const stage = document.getElementById("stage");
    const watch = new MutationObserver(() => {
        if (begun !== null && !stage.classList.contains("waiting")) end(null); // the answer is shown, no mask was drawn
    });
    watch.observe(stage, { attributeFilter: ["class"] });
}"""


@dataclass(frozen=True)
class ClickTimes:
    """Milliseconds per click of each kind, and the browser that they were measured in."""

    first: list[float]
    later: list[float]
    browser: str


def click_in_browser(address: str, clicks: int, seed: int, warm: int, pause_s: float) -> ClickTimes | None:
    """Click on random places of image 1 with pauses: first to start new objects, then to correct them.

    Returns None if Chromium isn't installed.
    """
    executable = shutil.which("chromium")
    if executable is None:
        return None
    import numpy as np
    from playwright.sync_api import sync_playwright

    rng = np.random.default_rng(seed)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=_ARGUMENTS)
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.goto(address)
        page.locator("#work").wait_for(state="visible")
        page.wait_for_function("() => document.querySelector('#picture').complete")
        page.wait_for_load_state("networkidle")
        page.evaluate(_WATCH)
        picture: Any = page.locator("#picture").bounding_box()
        times: dict[str, list[float]] = {"first": [], "later": []}

        def click(button: Any) -> float | None:
            """Click on a random place. Return None if the model finds nothing there, because no mask is drawn then."""
            page.wait_for_timeout(1000 * pause_s)
            x, y = rng.uniform(0.02, 0.98, 2)
            page.mouse.click(picture["x"] + x * picture["width"], picture["y"] + y * picture["height"], button=button)
            shown: float | None = page.evaluate("window.shown")
            return shown

        number = 0
        while min(map(len, times.values())) < clicks:
            first = click("left")
            later = None if first is None else click("right" if rng.integers(2) else "left")
            page.keyboard.press("Escape")
            number += 1
            if number > warm and first is not None and later is not None:
                times["first"].append(first)
                times["later"].append(later)
        version = browser.version
        browser.close()
    return ClickTimes(times["first"], times["later"], f"Chromium {version}")
