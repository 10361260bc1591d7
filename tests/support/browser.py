"""A real Chromium for tests, and checks of a page."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:  # every test run loads this file, and few need Playwright
    from playwright.sync_api import Browser, ConsoleMessage, Page, Request

_OFF = [
    # The lists below the address bar: two pages, each in a process, for every window. They take more than the window.
    "WebUIOmniboxAimPopup",
    "WebUIOmniboxFullPopup",
    "WebUIOmniboxPopup",
    # The last such argument counts, so this one repeats Playwright's.
    "AimEnabled",
    "AvoidCorsURLLoaderRestartOnRedirect",
    "AvoidUnnecessaryBeforeUnloadCheckSync",
    "DestroyProfileOnBrowserClose",
    "HttpsFirstBalancedModeAutoEnable",
    "HttpsUpgrades",
    "LensOverlay",
    "MediaRouter",
    "NetworkTimeServiceQuerying",
    "OptimizationHints",
    "PaintHolding",
    "PreconnectToSearch",
    "ThirdPartyStoragePartitioning",
]

_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    f"--disable-features={','.join(_OFF)}",
]


# Module scope, not more: while it lives, Playwright's event loop counts as running in this thread, and nothing else in
# it could run another one.
@pytest.fixture(scope="module")
def chromium() -> "Iterator[Browser]":
    """A headless Chromium, the one on the PATH; skips by name without it. Close the pages and contexts you make."""
    executable = shutil.which("chromium")
    if executable is None:
        pytest.skip("chromium is not on the PATH: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=_ARGUMENTS)
        yield browser
        browser.close()


@dataclass
class WatchedPage:
    """Errors and requests of a page since it was watched."""

    errors: list[str] = field(default_factory=list)  # of the console, warnings included, and of scripts
    requests: list[str] = field(default_factory=list)  # URLs


def watch(page: "Page") -> WatchedPage:
    """Record a page's errors and requests from now on; call it before the page is opened."""
    watched = WatchedPage()

    def console(message: "ConsoleMessage") -> None:
        if message.type in ("error", "warning"):
            watched.errors.append(f"{message.type}: {message.text}")

    def requested(request: "Request") -> None:
        watched.requests.append(request.url)

    page.on("console", console)
    page.on("pageerror", lambda error: watched.errors.append(f"exception: {error}"))
    page.on("request", requested)
    return watched


def serious_violations(page: "Page") -> list[str]:
    """Violations that axe-core calls serious or critical in a page: one line for each rule, with the first elements."""
    from axe_playwright_python.base import AXE_SCRIPT

    if page.evaluate("typeof axe") == "undefined":
        page.evaluate(AXE_SCRIPT)
    # Only what is wrong, for Playwright takes long to pass on what axe says of the rest.
    options = "{ resultTypes: ['violations'], rules: { 'target-size': { enabled: true } } }"
    script = f"() => axe.run({options}).then(({{ violations }}) => violations)"
    found: list[dict[str, Any]] = page.evaluate(script)
    return [
        f"{rule['id']} ({rule['impact']}): {rule['help']}: {[node['html'][:160] for node in rule['nodes'][:3]]}"
        for rule in found
        if rule["impact"] in ("serious", "critical")
    ]


def sideways_scroll(page: "Page") -> int:
    """By how many CSS pixels a page is wider than its window."""
    return int(page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))
