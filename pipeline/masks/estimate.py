"""Time estimates for masks from the speed that the last run on this machine recorded. Does not import torch."""

import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from segmint.infra.assets.cache import cache_folder
from segmint.infra.assets.known import ASSETS
from segmint.infra.device import cores_here
from segmint.infra.errors import UsageError
from segmint.infra.uris import base_name, local_path, redact
from segmint.infra.wording import counted, duration
from segmint.pipeline.masks.images import is_local
from segmint.pipeline.masks.options import MasksOptions

SPEEDS = "masks-speeds.json"
"""File in the user's cache that contains a speed per combination of weights, device, precision, and number of CPUs."""


@dataclass(frozen=True)
class Speed:
    """Seconds to load torch and the model, to encode an image, and to decode a point."""

    start_s: float
    encode_s: float
    point_s: float


@dataclass(frozen=True)
class Work:
    """Masks to generate. `points` and `encodes` are per photograph."""

    options: MasksOptions
    photographs: int

    @property
    def encodes(self) -> int:
        """Passes through the image encoder per photograph: one for the photograph and one for each crop."""
        return 1 if self.options.prompts_each else self.options.masks.settings().encodes

    @property
    def points(self) -> int:
        """Number of prompts or, without prompts, of grid points in a photograph and its crops."""
        return self.options.prompts_each or self.options.masks.settings().points

    def seconds(self, speed: Speed) -> float:
        """Return the estimated time in seconds for all photographs."""
        return speed.start_s + self.photographs * (self.encodes * speed.encode_s + self.points * speed.point_s)

    def line(self) -> str:
        """Return the estimate as one line, such as `mobile_sam: 1,024 points, about 20 s`."""
        things = counted(self.points, "prompt" if self.options.prompts_each else "point")
        photographs = "" if self.photographs == 1 else f"{self.photographs:,} photographs with "
        about = duration(self.seconds(recorded_speed(self.options) or _usual_speed(self.options)), rough=True)
        return f"{base_name(self.options.weights)}: {photographs}{things}, about {about}"


class Stopwatch:
    """Timer that measures the speed of mask generation for one photograph. Call it whenever points were decoded."""

    def __init__(self, work: Work, start_s: float, report: Callable[[int, int], object] | None = None) -> None:
        self._work, self._start_s, self._report = work, start_s, report
        self._began = time.monotonic()
        self._first_s: float | None = None

    def __call__(self, done: int, points: int) -> None:
        """Record that `done` of `points` points are decoded."""
        if self._first_s is None:
            self._first_s = time.monotonic() - self._began
        if self._report is not None:
            self._report(done, points)

    def record(self) -> None:
        """Save the speed for the next run's estimate. Does nothing if the cache isn't writable."""
        total_s = time.monotonic() - self._began
        # On a GPU, several encodes precede the first points, so `_first_s` can exceed the time of one encode. Limit it.
        encode_s = min(self._first_s or 0.0, total_s / self._work.encodes)
        point_s = (total_s - self._work.encodes * encode_s) / self._work.points
        speed = Speed(*(float(f"{seconds:.3g}") for seconds in (self._start_s, encode_s, point_s)))
        with suppress(OSError, UsageError):
            folder = cache_folder()
            temporary = folder / f".tmp-{SPEEDS}-{os.getpid()}"
            folder.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps({**_speeds(), _key(self._work.options): asdict(speed)}, indent=1) + "\n")
            temporary.replace(folder / SPEEDS)


def recorded_speed(options: MasksOptions) -> Speed | None:
    """Return the speed that the last run with these weights, device, and precision recorded, or None."""
    with suppress(AttributeError, KeyError, TypeError, ValueError):
        speed = Speed(**{name: float(seconds) for name, seconds in _speeds()[_key(options)].items()})
        if 0 <= speed.start_s + speed.encode_s + speed.point_s < float("inf"):
            return speed
    return None


def _speeds() -> dict[str, dict[str, float]]:
    try:
        speeds = json.loads((cache_folder() / SPEEDS).read_bytes())
    except (OSError, UsageError, ValueError, RecursionError):
        return {}
    return speeds if isinstance(speeds, dict) else {}


def _key(options: MasksOptions) -> str:
    return f"{redact(options.weights)}, {options.device}, {options.precision}, {cores_here()} CPUs"


def _usual_speed(options: MasksOptions) -> Speed:
    """Return a rough speed for a first run, proportional to the size of the weights (docs/masks.md)."""
    size = ASSETS.get(options.weights, ASSETS["mobile_sam"]).size
    if options.weights not in ASSETS and is_local(options.weights) and local_path(options.weights).is_file():
        size = local_path(options.weights).stat().st_size
    if options.device.startswith("cuda") or (options.device == "auto" and Path("/dev/nvidia0").exists()):
        return Speed(start_s=10.0, encode_s=size / 20e9, point_s=0.0005)
    return Speed(start_s=5.0, encode_s=size / 40e6 / cores_here(), point_s=0.03 / cores_here())
