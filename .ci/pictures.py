"""Write the screenshots in docs/images from the demo's dataset, with the Chromium on the PATH (`make pictures`).

    python .ci/pictures.py demo/dataset

The dataset is copied first, because reports and annotations are stored in it. NOTICE credits the photographs.
"""

import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image
from playwright.sync_api import sync_playwright

if TYPE_CHECKING:
    from playwright.sync_api import Page

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
WINDOW = {"width": 1280, "height": 800}  # CSS pixels
COFFEE, CUP = 2, ((290, 60), (300, 150))
"""The ID of the coffee cup in the demo's dataset, and points on the cup in its pixels."""

QUALITY = 80  # of WebP


def main(dataset: Path) -> None:
    """Copy the dataset, and take a screenshot of its report, of the viewer, and of the annotator."""
    chromium = shutil.which("chromium")
    if chromium is None:
        raise SystemExit("chromium is not on the PATH: apt-get install chromium")
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as playwright:
        copy = Path(scratch) / "demo"
        shutil.copytree(dataset, copy)
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_context(viewport=WINDOW, color_scheme="light").new_page()
        take_report(page, copy)
        take_view(page, copy)
        take_annotate(page, copy)
        browser.close()


def take_report(page: "Page", dataset: Path) -> None:
    """Take the first screen of `segmint report`."""
    subprocess.run([sys.executable, "-m", "segmint", "report", str(dataset)], check=True)
    page.goto((dataset / "report" / "index.html").as_uri())
    keep(page, "report")


def take_view(page: "Page", dataset: Path) -> None:
    """Take the grid of `segmint view`, with the masks on the thumbnails."""
    with served("view", str(dataset)) as address:
        page.goto(address)
        page.locator("#results .tile").first.wait_for()
        page.get_by_label("Masks on thumbnails").check()
        page.wait_for_load_state("networkidle")
        page.wait_for_timeout(1000)  # masks are drawn after they have arrived
        keep(page, "view")


def take_annotate(page: "Page", dataset: Path) -> None:
    """Take the page of `segmint annotate` after clicks on a cup."""
    options = ["--select", f"id = {COFFEE}", "--weights", "mobile_sam", "--device", "cpu", "--port", "0"]
    with served("annotate", str(dataset), *options) as address:
        page.goto(f"{address}#image/{COFFEE}")
        picture = page.locator("#picture")
        picture.wait_for()
        picture.evaluate("picture => picture.decode()")
        size = picture.evaluate("picture => [picture.naturalWidth, picture.naturalHeight]")
        for x, y in CUP:
            box = picture.bounding_box()
            assert box is not None
            page.mouse.click(box["x"] + x / size[0] * box["width"], box["y"] + y / size[1] * box["height"])
            page.locator("#work:not(:has(.waiting)) #mask-title:has-text('IoU')").wait_for(timeout=120_000)
        keep(page, "annotate")


@contextmanager
def served(*arguments: str) -> Iterator[str]:
    """Run a command that serves pages until the block ends; yield its address."""
    command = [sys.executable, "-m", "segmint", *arguments, "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            address = process.stdout.readline().strip()
            if not address.startswith("http://127.0.0.1:"):
                raise SystemExit(f"segmint {arguments[0]} printed {address!r}; expected an address")
            yield address
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(timeout=60)


def keep(page: "Page", name: str) -> None:
    """Write what the window shows as a WebP file."""
    path = IMAGES / f"{name}.webp"
    with Image.open(BytesIO(page.screenshot())) as picture:
        picture.convert("RGB").save(path, quality=QUALITY, method=6)
    print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
