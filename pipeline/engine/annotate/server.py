"""The annotators' server, which opens a dataset and a model and listens on 127.0.0.1 until it is interrupted."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from starlette.applications import Starlette

from segmint.catalogs.dataset.manifest import DatasetManifest, dataset_keys, load_manifest
from segmint.catalogs.dataset.versions.record import name_now
from segmint.infra.assets.cache import sha256_of
from segmint.infra.assets.known import AssetError
from segmint.infra.assets.resolve import resolve
from segmint.infra.device import resolve_compute
from segmint.infra.scratch import ScratchFolder
from segmint.infra.storage.location import Location
from segmint.operators.decoding import JpegDecoder
from segmint.operators.segment.models import load_model
from segmint.pipeline.engine.annotate.access import ServerOrigin, Team
from segmint.pipeline.engine.annotate.annotator_view import AnnotatorView, MaskFiles
from segmint.pipeline.engine.annotate.clicks.decoder import Decoder
from segmint.pipeline.engine.annotate.clicks.embeddings import Embeddings
from segmint.pipeline.engine.annotate.clicks.predictor_thread import PredictorThread
from segmint.pipeline.engine.annotate.clicks.prefill import ObjectFinder, PrefillCache, mask_settings
from segmint.pipeline.engine.annotate.progress_board import ProgressBoard
from segmint.pipeline.engine.annotate.queue import QueueOptions, make_queue
from segmint.pipeline.engine.annotate.session_info import SessionInfo
from segmint.pipeline.engine.annotate.source import ImageSource, check_images
from segmint.pipeline.quality.statistics.open_tables import open_tables
from segmint.pipeline.serving.images import ImagePlaces
from segmint.pipeline.serving.levels import MEASURED
from segmint.pipeline.serving.server import listen, run_app

DEFAULT_WEIGHTS = "mobile_sam"


@dataclass(frozen=True)
class AnnotateOptions:
    """Options of an annotation session. By default, `weights` are the dataset's weights, if they can be found."""

    queue: QueueOptions = field(default_factory=QueueOptions)
    stage: str = "assisted"
    weights: str | None = None
    device: str = "auto"
    detector: str | None = None  # TorchScript file of an object detector, whose boxes prefill masks
    files: MaskFiles | None = None  # external files to which saved masks are also written


@dataclass(frozen=True)
class ServedView:
    """Annotator view that is ready to serve, with a note to print for the user."""

    annotator_view: AnnotatorView
    note: str | None = None


@contextmanager
def open_view(dataset: Location, options: AnnotateOptions) -> Iterator[ServedView]:
    """Open a dataset for annotation. Deletes scratch files on exit.

    Raises `UsageError` if there is no segmint dataset, if it has no images, or if the weights aren't SAM's, and the
    errors of `make_queue`.
    """
    manifest = load_manifest(dataset)
    check_images(dataset, manifest)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(ScratchFolder()))
        with open_tables(dataset, scratch=folder) as tables:
            queue = make_queue(tables, manifest, options.queue)
            places = stack.enter_context(closing(ImagePlaces(tables, folder)))
        weights, path, note = find_weights(dataset, manifest, options.weights)
        compute = resolve_compute(options.device, "fp32")
        predictor = stack.enter_context(PredictorThread(lambda: load_model(path, compute)))
        decoder = stack.enter_context(JpegDecoder(own=True))
        source = stack.enter_context(closing(ImageSource(dataset, places, folder)))
        study = None if options.queue.study is None else options.queue.study.name
        about = SessionInfo(
            name=manifest.name,
            key=dataset_keys(dataset)[0],
            version=name_now(dataset),
            images=len(queue),
            stage=options.stage,
            weights=weights,
            weights_sha256=sha256_of(path),
            overlap=options.queue.overlap,
            study=study,
            order=MEASURED.get(manifest.weights.sha256),
        )
        prefills = None
        if options.detector is not None:
            finder = stack.enter_context(ObjectFinder(resolve(options.detector, storage=dataset.storage)))
            prefills = PrefillCache(finder, predictor, decoder, mask_settings(manifest))
        embeddings = stack.enter_context(
            Embeddings(predictor, decoder, source.read, made=None if prefills is None else prefills.make)
        )
        masks = stack.enter_context(Decoder(predictor))
        annotator_view = AnnotatorView(
            *(dataset, about, queue, source, ProgressBoard(dataset), embeddings, masks),
            prefills=prefills,
            files=options.files,
        )
        stack.enter_context(closing(annotator_view))
        stack.enter_context(annotator_view.kept)
        yield ServedView(annotator_view, note)


def find_weights(dataset: Location, manifest: DatasetManifest, name: str | None) -> tuple[str, Path, str | None]:
    """Find the weights, and return their name, their file, and a note.

    The note is None if the weights are the dataset's or if the user chose them. Raises `AssetError` if no weights can
    be found.
    """
    if name is not None:
        return name, resolve(name, storage=dataset.storage), None
    wanted = manifest.weights
    if "segmenter" in manifest.config:
        note = f"using {DEFAULT_WEIGHTS} because a segmenter made the masks: {wanted.name}. Pass weights with --weights"
        return DEFAULT_WEIGHTS, resolve(DEFAULT_WEIGHTS), note
    try:
        path = resolve(wanted.name, storage=dataset.storage)
        if sha256_of(path) == wanted.sha256:
            return wanted.name, path, None
        problem = f"{path} is now a different file"
    except (AssetError, OSError) as error:
        problem = str(error).splitlines()[0]
    note = f"using {DEFAULT_WEIGHTS} because the dataset's weights weren't found: {problem}. Pass them with --weights"
    return DEFAULT_WEIGHTS, resolve(DEFAULT_WEIGHTS), note


def serve(
    make: Callable[[Team], Starlette],
    port: int,
    names: Sequence[str],
    *,
    origin: ServerOrigin | None = None,
    open_browser: bool,
    on_ready: Callable[[Mapping[str, str]], None],
) -> None:
    """Serve a team's application until the process receives SIGINT or SIGTERM.

    Once the server listens, `on_ready` receives each annotator's URL, and the first annotator's URL is opened if
    `open_browser` is set. Port 0 picks a free port. Raises `UsageError` if the port is in use.
    """
    with closing(listen(port)) as listener:
        team = Team(listener.getsockname()[1], list(names), origin)
        addresses = {name: team.address(name) for name in team.annotators}
        app = make(team)
        on_ready(addresses)
        run_app(app, listener, addresses[team.owner] if open_browser else None)
