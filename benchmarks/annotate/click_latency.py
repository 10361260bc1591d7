"""Latency of a click in `segmint annotate`, measured over HTTP and in a real browser.

The SAM paper's model responds to a click in a browser within 50 ms. The benchmark reports its times next to this
number, separately for first clicks (one point) and later clicks (points with the logits of the previous prediction).
Before each click, it pauses like a person, so threads and cores go to sleep. The image's embedding is ready. Over HTTP,
the clock runs from the request to the complete response. In Chromium, if it is on the PATH, the clock runs from the
pointer event to the frame that shows the mask.

The same run compares the server's masks with the masks of `Predictor` for the same prompts, bit for bit. If there are
CPU kernels, it also times the model without the server (`Predictor.predict`) for the same later clicks, alternating
between the kernels and torch.

    python benchmarks/annotate/click_latency.py --clicks 200

With `--apart`, the server and the browser each run on a separate core, so that neither waits for the other.
"""

import argparse
import io
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.annotate.browser_clicks import click_in_browser
from benchmarks.machine import describe_machine
from benchmarks.measuring import RESULTS, ROOT, write_result
from segmint.infra.device import physical_cores

PAPER_MS = 50
OUTPUT = RESULTS / "click_latency.json"
_WARM = 10


def make_dataset(folder: Path, photograph: str, side: int) -> Path:
    """Build a dataset of one photograph, whose shorter side is scaled to `side` pixels, and return its folder."""
    import numpy as np
    from PIL import Image
    from skimage import data

    from tests.support.builds import write_config
    from tests.support.small_dataset import build_dataset

    image = Image.fromarray(np.asarray(getattr(data, photograph)()))
    scale = side / min(image.size)
    resized = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    photos = folder / "photos"
    photos.mkdir()
    resized.save(photos / "one.jpg", quality=95)
    (photos / "catalog.csv").write_text("uri,license\none.jpg,CC0-1.0\n", encoding="utf-8")
    masks = {"points_per_side": 2, "crop_n_layers": 0}
    build_dataset(write_config(folder / "build.yaml", photos / "catalog.csv", folder / "dataset", masks=masks))
    return folder / "dataset"


def measure(
    dataset: Path, clicks: int, seed: int, threads: int, pause_s: float, apart: tuple[int, int] | None
) -> dict[str, Any]:
    """Click on random places. Return the milliseconds of first and later clicks, and whether all masks are exact.

    `apart` contains the server's core and the browser's core, or is None if they share all cores.
    """
    import httpx

    command = [sys.executable, "-m", "segmint", "annotate", str(dataset), "--no-browser", "--port", "0"]
    command += ["--weights", "mobile_sam", "--device", "cpu", "--name", "http", "--name", "page"]
    cores = os.sched_getaffinity(0)
    if apart is not None:
        os.sched_setaffinity(0, apart[:1])  # child processes inherit this thread's cores
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            if apart is not None:
                os.sched_setaffinity(0, apart[1:])
            assert process.stdout is not None
            address, of_page = (process.stdout.readline().split(": ", 1)[1].strip() for _ in range(2))
            origin = address.partition("/?")[0]
            headers = {"x-segmint": "1", "x-segmint-annotator": "http", "origin": origin}
            with httpx.Client(base_url=origin, headers=headers, timeout=60) as client:
                while True:
                    try:
                        client.get(address)
                        break
                    except httpx.ConnectError:
                        time.sleep(0.1)
                client.post("/api/images/1/embed").raise_for_status()
                jpeg = client.get("/images/1.jpg").content
                recorded = _click(client, jpeg, clicks, seed, pause_s)
            seen = click_in_browser(of_page, clicks, seed, _WARM, pause_s)
        finally:
            process.kill()
            os.sched_setaffinity(0, cores)
    asked = recorded.pop("asked")
    browser = None
    if seen is not None:
        browser = {"browser": seen.browser, "first": _spread(seen.first), "later": _spread(seen.later)}
    exact, model = _compare(jpeg, asked, threads)
    return {**recorded, "in_browser": browser, "model_of_later_clicks": model, "exact": exact}


def _click(client: Any, jpeg: bytes, clicks: int, seed: int, pause_s: float) -> dict[str, Any]:
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(seed)
    width, height = Image.open(io.BytesIO(jpeg)).size
    times: dict[str, list[float]] = {"first": [], "later": []}
    asked: list[dict[str, Any]] = []
    for number in range(clicks + _WARM):
        points = [[float(rng.uniform(0, width)), float(rng.uniform(0, height)), 1]]
        handle = None
        for kind in times:
            prompt = {"points": points, "from": handle}
            time.sleep(pause_s)
            begun = time.perf_counter()
            answer = client.post("/api/images/1/predict", json={"prompt": prompt}).raise_for_status().json()
            if number >= _WARM:
                times[kind].append((time.perf_counter() - begun) * 1000)
                asked.append({"kind": kind, "points": points, "answer": answer})
            handle = answer["handle"]
            points = [*points, [float(rng.uniform(0, width)), float(rng.uniform(0, height)), int(rng.integers(2))]]
    return {"size": [height, width], "asked": asked, **{kind: _spread(each) for kind, each in times.items()}}


def _spread(milliseconds: list[float]) -> dict[str, Any]:
    import numpy as np

    quantiles = {name: float(np.percentile(milliseconds, q)) for name, q in (("median", 50), ("p95", 95), ("p99", 99))}
    rounded = {name: round(value, 1) for name, value in quantiles.items()}
    return {**rounded, "most": round(max(milliseconds), 1), "clicks": len(milliseconds)}


def _compare(jpeg: bytes, asked: list[dict[str, Any]], threads: int) -> tuple[bool, dict[str, Any] | None]:
    """Compare the server's masks with the masks of `Predictor` for the same prompts and number of threads.

    Returns whether all masks are equal. If there are CPU kernels, also returns the milliseconds of `Predictor.predict`
    for the later clicks, with the kernels and with torch, and their ratio; otherwise, returns None for these.
    """
    import numpy as np

    from segmint.infra.assets import resolve
    from segmint.infra.device import resolve_compute
    from segmint.model.automatic.rle import encode
    from segmint.model.sam.predictor import Predictor
    from segmint.operators.images import decode_jpeg
    from segmint.operators.segment.models import load_model

    sam = load_model(resolve("mobile_sam"), resolve_compute("cpu", "fp32", threads))
    predictor, by_torch = Predictor(sam), Predictor(sam, kernels=None)
    embedding = predictor.embed(decode_jpeg(jpeg))
    before = None
    exact = True
    times: dict[str, list[float]] = {"kernels": [], "torch": []}
    for number, one in enumerate(asked):
        points, labels = np.array([[p[:2] for p in one["points"]]]), np.array([[p[2] for p in one["points"]]])
        first = one["kind"] == "first"
        sides = {"kernels": predictor, "torch": by_torch}
        for side in sides if number % 4 < 2 else reversed(sides):
            begun = time.perf_counter()
            result = sides[side].predict(embedding, points, labels, masks=None if first else before, multimask=first)
            if not first:
                times[side].append((time.perf_counter() - begun) * 1000)
            if side == "kernels":
                found = result
        masks = [
            encode((predictor.upscale(m[None, None], embedding)[0, 0] > 0).numpy()) for m in found.low_res_logits[0]
        ]
        exact &= sorted(mask.counts for mask in masks) == sorted(mask["counts"] for mask in one["answer"]["masks"])
        if first:
            chosen = one["answer"]["masks"][one["answer"]["chosen"]]["counts"]
            index = [mask.counts for mask in masks].index(chosen)
            before = found.low_res_logits[:, index : index + 1]
    if predictor.kernels is None:
        return exact, None
    ratio = [mine / other for mine, other in zip(times["kernels"], times["torch"], strict=True)]
    quartiles = np.percentile(ratio, (25, 50, 75))
    ratios = {
        name: round(float(value), 3)
        for name, value in zip(("first_quartile", "median", "third_quartile"), quartiles, strict=True)
    }
    return exact, {**{side: _spread(each) for side, each in times.items()}, "ratio": ratios}


def main() -> None:
    """Measure, print, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clicks", type=int, default=200, help="clicks of each kind")
    parser.add_argument("--side", type=int, default=1500, help="pixels of the image's shorter side")
    parser.add_argument("--photograph", default="coffee", help="a photograph of scikit-image")
    parser.add_argument("--pause", type=float, default=0.3, help="seconds before each click, as people make")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--apart", action="store_true", help="server and browser on one core each")
    parser.add_argument("-o", "--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    apart = None
    if arguments.apart:
        first, second, *_ = sorted(os.sched_getaffinity(0))
        apart = first, second
    threads = 1 if apart else physical_cores()  # first, because building the dataset changes torch's threads
    machine = describe_machine(threads, "fp32")
    with tempfile.TemporaryDirectory() as folder:
        dataset = make_dataset(Path(folder), arguments.photograph, arguments.side)
        result = measure(dataset, arguments.clicks, arguments.seed, threads, arguments.pause, apart)
    for where, spreads in (("over HTTP", result), ("in the browser", result["in_browser"] or {})):
        for kind in ("first", "later"):
            if kind in spreads:
                median, p95 = spreads[kind]["median"], spreads[kind]["p95"]
                print(f"{kind} clicks {where}: median {median} ms, p95 {p95} ms (the paper: {PAPER_MS} ms)")
    if (model := result["model_of_later_clicks"]) is not None:
        ratio = model["ratio"]["median"]
        print(f"the model of a later click: {ratio} of the time by torch ({model['kernels']['median']} ms)")
    print(f"masks are the predictor's, bit for bit: {result['exact']}")
    settings = {"paper_ms": PAPER_MS, "pause_s": arguments.pause, "apart": apart is not None}
    write_result(arguments.output, "click_latency", machine, {**settings, **result})
    if not result["exact"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
