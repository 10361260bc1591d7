"""Rating of single masks: the rater's view, and its web application.

Server-side rater view, without HTTP: shows single masks, saves ratings, and withdraws them.

The sample contains the same number of masks per source, drawn at random. An annotation id would reveal whether a person
made the mask, so a rater's page identifies masks by their index in the rater's order, from 0.

Web application of raters. URLs identify masks by their index in the rater's order, which reveals nothing about them.

```
GET  /                      the page; /assets/… its scripts and styles
GET  /api/session           the rater and the session
POST /api/rate/next         the next unrated mask
GET  /api/rate/{item}       a mask
PUT  /api/rate/{item}/{n}   save the n-th rating of a mask, {score, seconds}; a null score withdraws the last one
GET  /images/{id}.jpg       its image
POST /api/address           create a URL for a rater (owner only)
```
"""

import hashlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response

from segmint.catalogs.dataset.manifest import load_manifest
from segmint.catalogs.dataset.ratings import (
    HIGHEST,
    LEAST_AREA,
    LOWEST,
    Rating,
    RatingError,
    RatingName,
    counts_digest,
    last_ratings,
    list_ratings,
    put_rating,
    rater_key,
    read_rating,
    read_ratings,
)
from segmint.catalogs.dataset.tables import DatasetTables, check_selection
from segmint.catalogs.dataset.versions import name_now
from segmint.catalogs.layout import wrong_fields
from segmint.infra.errors import UsageError
from segmint.infra.scratch import ScratchFolder
from segmint.infra.storage.location import Location
from segmint.pipeline.engine.annotate.app import ASSETS
from segmint.pipeline.engine.annotate.requests import (
    IDLE_S,
    RequestBodies,
    Team,
    number_in,
    reads,
    team_app,
    team_routes,
)
from segmint.pipeline.engine.annotate.source import (
    ConflictError,
    ImageGoneError,
    ImageMemory,
    ImageSource,
    OpenImage,
    check_images,
)
from segmint.pipeline.engine.study.ratings import RatingStudy
from segmint.pipeline.quality.statistics.masks import open_tables
from segmint.pipeline.serving.images import ImagePlaces, NoImageError, UnknownImageError
from segmint.pipeline.serving.responses import json_response


class SampledMask(NamedTuple):
    """Mask to rate, with its image and annotation id.

    In a study, `variant` is 0 for the mask itself, or the number of a model's version of the mask.
    """

    image: int
    mask: int
    variant: int = 0


@dataclass(frozen=True)
class SampleOptions:
    """Number of masks to draw, seed, and selection. `select` is a condition on the columns of `images`."""

    masks: int = 200
    seed: int = 0
    select: str | None = None


def quotas(counts: Mapping[str, int], wanted: int) -> dict[str, int]:
    """Return the number of masks to draw per source.

    All sources contribute equally. If a source has too few masks, the others make up the difference.
    """
    given: dict[str, int] = {}
    for place, source in enumerate(sorted(counts, key=lambda source: (counts[source], source))):
        share = (wanted - sum(given.values())) // (len(counts) - place)
        given[source] = min(counts[source], share)
    return given


def draw_sample(tables: DatasetTables, options: SampleOptions) -> list[SampledMask]:
    """Draw the masks to rate, sorted by annotation id. The same dataset, options, and seed give the same masks.

    Raises `UsageError` if the condition is invalid or if there is no mask to rate.
    """
    if options.masks < 1:
        raise UsageError(f"--masks {options.masks}: expected 1 or more")
    condition = "true" if options.select is None else check_selection(tables, options.select)
    among = f"area >= {LEAST_AREA} AND id IN (SELECT id FROM images WHERE {condition})"
    rows = tables.query(f"SELECT source, count(*) AS masks FROM masks WHERE {among} GROUP BY ALL")
    counts = {row["source"]: int(row["masks"]) for row in rows.to_pylist()}
    if not counts:
        raise UsageError(f"no masks to rate: none with {LEAST_AREA} pixels or more match --select")
    drawn: list[SampledMask] = []
    for source, number in quotas(counts, options.masks).items():
        found = tables.query(
            f"SELECT id, annotation_id FROM masks WHERE {among} AND source = $1 "
            f"ORDER BY md5('{options.seed:d}:' || annotation_id), annotation_id LIMIT {number:d}",
            [source],
        )
        drawn += [SampledMask(row["id"], row["annotation_id"]) for row in found.to_pylist()]
    return sorted(drawn, key=lambda each: each.mask)


def order_for(sample: Sequence[SampledMask], rater: str, seed: int) -> list[SampledMask]:
    """Shuffle the masks into an order that depends on the rater and the seed."""

    def key(each: SampledMask) -> bytes:
        variant = f":{each.variant}" if each.variant else ""
        return hashlib.sha256(f"{seed}:{each.mask}:{rater}{variant}".encode()).digest()

    return sorted(sample, key=key)


_SAID = frozenset({"score", "seconds"})


class RaterView:
    """Shared state of a rating server: its masks and their ratings. Thread-safe."""

    def __init__(
        self,
        roots: Sequence[Location],
        about: Mapping[str, Any],
        source: ImageSource,
        sample: Sequence[SampledMask],
        seed: int,
        study: RatingStudy | None = None,
    ) -> None:
        """Read the existing ratings. Raises `StorageFaultError` if the store fails.

        `roots` contains the location of each variant's ratings: the dataset, or a study's folders. `about` contains the
        facts about the session that the page shows.
        """
        self._roots = roots
        self._versions = {} if study is None else {each.mask: each.counts for each in study.objects}
        self.about = about
        self.source = source
        self._sample = sample
        self._seed = seed
        self._lock = threading.Lock()
        self._orders: dict[str, list[SampledMask]] = {}
        self._gone: set[SampledMask] = set()  # masks that no longer exist
        wanted = {each.mask for each in sample}
        self._numbers: dict[tuple[str, SampledMask], int] = {}
        self._last: dict[tuple[str, SampledMask], Rating] = {}
        for variant, root in enumerate(roots):
            names = [name for name in last_ratings(list_ratings(root)) if name.mask in wanted]
            for name in names:
                self._numbers[name.rater, SampledMask(name.ordinal + 1, name.mask, variant)] = name.n
            for rating in read_ratings(root, names):
                # A study's folder may contain ratings from another study that rated other masks of the same objects.
                if isinstance(rating, Rating) and self._is_shown(rating, variant):
                    self._last[rating.name.rater, SampledMask(rating.image, rating.mask, variant)] = rating

    def __len__(self) -> int:
        return len(self._sample)

    def next(self, rater: str) -> dict[str, Any]:
        """Return the first unrated mask in a rater's order. `item` is None if the rater has rated all masks."""
        for item, each in enumerate(self.order_of(rater)):
            if self._is_rated(rater, each) or each in self._gone:
                continue
            try:
                return self.show(rater, item)
            except (ImageGoneError, UnknownImageError, NoImageError):
                with self._lock:
                    self._gone.add(each)
        return {"item": None, **self.progress(rater)}

    def show(self, rater: str, item: int) -> dict[str, Any]:
        """Return a mask to rate, without anything that reveals its source.

        Raises `UsageError` if the index is outside the order, and `ImageGoneError` if the mask no longer exists.
        """
        each, found, counts = self._mask(rater, item)
        with self._lock:
            last = self._last.get((rater_key(rater), each))
            number = self._numbers.get((rater_key(rater), each), 0)
        score = None if last is None or last.counts_sha256 != counts_digest(counts) else last.score
        return {
            "item": item,
            "image": each.image,
            "size": list(found.size),
            "counts": counts,
            "n": number,
            "score": score,
            **self.progress(rater),
        }

    def save(self, rater: str, item: int, n: int, body: Any) -> Rating:
        """Save a rating of a mask, and return it as stored. A score of None withdraws the rater's last rating.

        Raises `UsageError` if the body isn't a rating, `ConflictError` if another rating has the number, and
        `ImageGoneError` or `RemovedImageError` if the mask no longer exists.
        """
        each, _, counts = self._mask(rater, item)
        if not isinstance(body, Mapping) or set(body) != _SAID:
            raise UsageError("expected an object with only score and seconds")
        try:
            rating = Rating(
                image=each.image,
                mask=each.mask,
                n=n,
                counts_sha256=counts_digest(counts),
                rater=rater,
                score=body["score"],
                seconds=body["seconds"],
                saved_at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            )
        except ValidationError as error:
            raise UsageError(f"expected a score from {LOWEST} to {HIGHEST}: {wrong_fields(error)}") from error
        with self._lock:
            known = self._numbers.get((rating.name.rater, each), 0)
        if n > known + 1:
            raise UsageError(f"the next rating of this mask is {known + 1}, not {n}")
        stored = put_rating(self._roots[each.variant], rating)
        return self._note(each, rating if stored else self._other(each, rating))

    def progress(self, rater: str) -> dict[str, Any]:
        """Return the number of masks that a rater has rated, and the total."""
        order = self.order_of(rater)
        return {"done": sum(self._is_rated(rater, each) for each in order), "total": len(order)}

    def _mask(self, rater: str, item: int) -> tuple[SampledMask, OpenImage, str]:
        order = self.order_of(rater)
        if not 0 <= item < len(order):
            raise UsageError(f"no mask {item}: expected 0 to {len(order) - 1}")
        each = order[item]
        found = self.source.read(each.image)
        counts = found.counts.get(each.mask)
        versions = self._versions.get(each.mask)
        if counts is None or (versions is not None and counts != versions[0]):
            raise ImageGoneError("this mask has been replaced or deleted")
        return each, found, counts if versions is None else versions[each.variant]

    def _is_shown(self, rating: Rating, variant: int) -> bool:
        versions = self._versions.get(rating.mask)
        return versions is None or rating.counts_sha256 == counts_digest(versions[variant])

    def _other(self, each: SampledMask, rating: Rating) -> Rating:
        """Return the stored rating if it is the same as this one. Otherwise, raise `ConflictError` with its score."""
        root = self._roots[each.variant]
        names = [name for name in list_ratings(root) if (name.mask, name.rater) == rating.name[1:3]]
        winner = self._read(root, max(names)) if names else None
        if winner is not None and winner.n == rating.n and rating.same_work(winner):
            return winner
        if winner is not None:
            self._note(each, winner)
        score = None if winner is None else winner.score
        raise ConflictError("another rating of this mask was saved first", score=score)

    def _read(self, root: Location, name: RatingName) -> Rating | None:
        try:
            return read_rating(root, name)
        except RatingError:
            return None

    def _note(self, each: SampledMask, rating: Rating) -> Rating:
        key = (rating.name.rater, each)
        with self._lock:
            if self._numbers.get(key, 0) <= rating.n:
                self._numbers[key] = rating.n
                self._last[key] = rating
        return rating

    def _is_rated(self, rater: str, each: SampledMask) -> bool:
        with self._lock:
            last = self._last.get((rater_key(rater), each))
        return last is not None and last.score is not None

    def order_of(self, rater: str) -> list[SampledMask]:
        with self._lock:
            if rater not in self._orders:
                self._orders[rater] = order_for(self._sample, rater, self._seed)
            return self._orders[rater]


@contextmanager
def open_rater_view(dataset: Location, options: SampleOptions, study: RatingStudy | None = None) -> Iterator[RaterView]:
    """Draw the masks to rate, or take them from a study, and open their images. Deletes scratch files on exit.

    Raises `UsageError` if there is no segmint dataset or it has no images, and the errors of `draw_sample`.
    """
    manifest = load_manifest(dataset)
    check_images(dataset, manifest)
    if study is not None and study.config_sha256 != manifest.config_sha256:
        raise UsageError(f"--study {study.folder} was drawn from another dataset")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(ScratchFolder()))
        with open_tables(dataset, scratch=folder) as tables:
            if study is None:
                sample, roots, seed = draw_sample(tables, options), [dataset], options.seed
            else:
                variants = range(len(study.names))
                sample = [SampledMask(each.image, each.mask, number) for each in study.objects for number in variants]
                roots, seed = [study.root(number) for number in variants], study.seed
            places = stack.enter_context(closing(ImagePlaces(tables, folder)))
        source = stack.enter_context(closing(ImageSource(dataset, places, folder)))
        stack.enter_context(ImageMemory(source, (), lambda _: None))
        dataset_facts = {"name": manifest.name, "digest": str(name_now(dataset))}
        about = {"dataset": dataset_facts, "stage": "rate", "idle_s": IDLE_S}
        yield RaterView(roots, about, source, sample, seed, study)


def make_rating_app(view: RaterView, team: Team) -> Starlette:
    """Build the application that serves a rater view to the browsers of a team."""

    def save(request: Request, body: Any) -> Response:
        rater = request.state.annotator
        saved = view.save(rater, number_in(request, "item"), number_in(request, "n"), body)
        return json_response({"n": saved.n, "next": view.next(rater)}, 201)

    bodies = RequestBodies()
    routes = [
        *team_routes(ASSETS / "rate.html", team, lambda: view.about, view.source, bodies),
        bodies.writes("/api/rate/next", lambda r, _: view.next(r.state.annotator)),
        reads("/api/rate/{item}", lambda r: view.show(r.state.annotator, number_in(r, "item"))),
        bodies.writes("/api/rate/{item}/{n}", save, method="PUT"),
    ]
    return team_app(routes, team)
