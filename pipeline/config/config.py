"""Configuration of a build as one frozen, typed tree, which contains the settings of the stages.

Each key is one of three kinds:

- *identity*: keys that determine the dataset's content. The first start pins them in `dataset.json`, and later builds
  with different values are refused. They are `name`, `images_per_shard`, `license` except `refuse` and `policy_date`,
  `ingest` except its timeout, `deidentify` except its device, `release`, `masks` with the profile's defaults filled in,
  `model.weights`, and `stages` except their resources, `batch_size`, `license`, `terms`, and `on_error`. With a
  `segmenter`, its stage, arguments, and filters take the place of `masks` and `model.weights`.
- *numerics*: keys that determine the last bits of masks and scores. The first start resolves them and pins them with
  the identity. They are `masks.points_per_chunk`, `model.device`, `model.precision`, `model.decoder_precision`,
  `model.encoder`, `model.kernels`, `model.images_per_batch`, `model.threads`, and `deidentify.device`.
- *runtime*: keys that may differ in every run. They are `catalog` (its contents are pinned by hash), `output`,
  `assets`, `curate` (used before a build), `resources`, `storage`, `license.policy_date` (pinned at the first start),
  `license.refuse`, `ingest.timeout_s`, `segmenter.on_error`, `stall_timeout`, `outage_timeout_s`, `retry_wait_s`,
  `max_reject_ratio`, `max_faults`, `window_shards`, `rows_per_block`, and `allow_mixed_numerics`.

Settings of the stages, from the configuration and a dataset's pinned values, for builds and samples.

Advice before building a large dataset, for `segmint plan` and `segmint build`.
"""

import math
import re
from collections.abc import Mapping
from datetime import date
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    field_validator,
    model_validator,
)

from segmint.catalogs.dataset.manifest import DatasetManifest, ModelTerms
from segmint.catalogs.layout import wrong_fields
from segmint.catalogs.licenses import LicensePolicy, canonical_identifier, fit_to_store, validate_identifier
from segmint.infra.assets import ASSETS, AUTO, pinned, resolve
from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.infra.units import Bytes, Seconds, auto_or, validated
from segmint.infra.uris import absolute, absolute_catalog
from segmint.operators.curate import CurateConfig
from segmint.operators.custom.contract import StageSpec, load_stage, stated_terms
from segmint.operators.opt_out import RefusalLists, read_refusal_lists
from segmint.operators.prepare.deidentify import (
    BUNDLED_DETECTORS,
    RULE,
    DeidentifyConfig,
    Entries,
    describe_recall,
    read_left_alone,
)
from segmint.operators.prepare.ingest_config import IngestConfig, formats_of
from segmint.operators.prepare.prepare import PrepareConfig
from segmint.operators.prepare.release import WHOLE_ORIGINAL, ReleaseConfig
from segmint.operators.segment.mask_config import MasksConfig, ModelConfig
from segmint.operators.segment.numerics import Numerics
from segmint.operators.segment.segment import SegmentSettings
from segmint.operators.segmenter.found_masks import MaskFilters
from segmint.operators.segmenter.segmenter import SegmenterSettings


class ConfigModel(BaseModel):
    """Base class for parts of a configuration: frozen, without unknown keys, NaN, or infinities."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True)


def _storage_options(value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    try:
        Storage(value)
    except UsageError as error:
        raise ValueError(str(error)) from error
    return value


StorageOptions = Annotated[dict[str, dict[str, Any]], AfterValidator(_storage_options)]
"""Storage options by URI prefix, in the form that `Storage` accepts."""


def _actors(value: Any) -> Any:
    if value == "auto" or (type(value) is int and value >= 1):
        return value
    if isinstance(value, list | tuple) and [type(bound) for bound in value] == [int, int]:
        least, most = value
        if 1 <= least <= most:
            return (least, most)
    raise ValueError("expected auto, a whole number of at least 1, or [min, max] with 1 <= min <= max")


Actors = Annotated[Literal["auto"] | int | tuple[int, int], BeforeValidator(_actors)]
Gpus = Annotated[
    Literal["auto"] | float,
    auto_or(
        lambda value: type(value) in (int, float) and value >= 0,
        " or a number of GPUs, 0 or more; with 0.5, two actors share a GPU",
    ),
]
AutoCount = Annotated[
    Literal["auto"] | int, auto_or(lambda value: type(value) is int and value >= 1, " or an integer of at least 1")
]
Share = Annotated[
    Literal["auto"] | float,
    auto_or(
        lambda value: type(value) in (int, float) and 0 < value <= 1,
        " or a fraction of a GPU, more than 0 and at most 1",
    ),
]

DETECTORS_SHARE = 0.1
"""Default share of a GPU for the detector process of a node."""


class LicenseConfig(ConfigModel):
    """License rules for images."""

    allow: tuple[str, ...] = Field(min_length=1)
    """Allowed licenses: SPDX identifiers in any case, or `LicenseRef-…` for private agreements."""
    require_redistributable: bool = False
    """Accept only rows with `redistributable: true`."""
    respect_opt_out: Annotated[
        Literal["auto"] | bool, auto_or(lambda value: isinstance(value, bool), ", true, or false")
    ] = "auto"
    """Reject an image if its metadata or the catalog says that the rights holder forbids training. auto: the value that
    the dataset was created with, or true for a new dataset."""
    refuse: tuple[str, ...] = ()
    """Paths or URIs of lists of SHA-256 sums, URLs, and domains. Images that they name are rejected as refused_by_list.
    Later runs may use other lists."""
    policy_date: date | None = None
    """Date on which licenses must still be valid. The dataset's first start pins the date, and later runs ignore this
    key. null: the date of the first start, in UTC."""

    @field_validator("allow")
    @classmethod
    def _known_identifiers(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(validated(validate_identifier), value))

    def policy(self, policy_date: date) -> LicensePolicy:
        """Return the policy that checks each row's license on `policy_date`."""
        return LicensePolicy(frozenset(self.allow), self.require_redistributable, policy_date, self.respects_opt_out)

    @property
    def respects_opt_out(self) -> bool:
        """`respect_opt_out` as a bool. `auto` is true, as for a new dataset."""
        return True if self.respect_opt_out == "auto" else self.respect_opt_out


class PoolConfig(ConfigModel):
    """Actor pool of a stage."""

    actors: Actors = "auto"
    """Number of actors, or `[min, max]`. auto: `segment` starts one actor per GPU. On a cluster without GPUs, `segment`
    starts one actor per machine. On a single machine without GPUs, `segment` starts as many actors as fit; each actor
    gets `model.threads` cores, and all actors together get half of the memory. `prepare` starts with one actor and
    grows into the remaining cores."""
    num_cpus: float = Field(default=1, gt=0)
    """Logical CPUs per actor."""


class PreparePoolConfig(PoolConfig):
    """Actor pool that reads, de-identifies, and encodes images."""

    num_gpus: Share = "auto"
    """Fraction of a GPU, more than 0 and at most 1, that each node reserves for its detector process. All `prepare`
    actors of a node share this process and use no GPU themselves. Ignored unless `deidentify.device` is cuda. auto:
    0.1."""


class SegmentPoolConfig(PoolConfig):
    """Actor pool that runs the model."""

    num_cpus: float = Field(default=2, gt=0)
    """Logical CPUs per actor. On a GPU, the actor starts this many threads to decode images and this many to finish
    masks, with a minimum of two each."""
    num_gpus: Gpus = "auto"
    """GPUs per actor. With 0.5, two actors share a GPU. auto: on CUDA, 1 minus the fraction reserved for a detector
    process; otherwise 0."""
    accelerator_type: str = Field(default="auto", min_length=1)
    """Ray's name for the kind of GPU to use (`H100`), for clusters with several kinds. auto: the kind that the dataset
    was created with, or any kind for a new dataset."""
    timeout_s: Seconds = Field(default=600, gt=0)
    """Time limit per image, applied separately to decoding the image, computing its masks, and finishing them. If a
    step exceeds the limit, the worker is killed and the image is tried again in a trial. If it times out twice in the
    trial, its row is rejected as `timed_out`. Set this above the time that the slowest image takes, but below
    `stall_timeout`."""


FEWEST_WRITERS = 2
"""Minimum number of shard writers with `resources.writers: auto`."""

ACTORS_PER_WRITER = 4
"""Segment actors per shard writer. An H200 finds the masks of 11 full images per second, and a writer wrote 31 rows/s
on two cores that all processes shared (`benchmarks/results/writers.json`)."""


class ResourcesConfig(ConfigModel):
    """Ray cluster and resources for a run."""

    address: str = "auto"
    """Ray cluster to connect to. auto: the cluster in RAY_ADDRESS, or a local Ray instance if the variable isn't set.
    local: always a local instance. Any other value is the address of a cluster."""
    object_store_memory: Bytes | None = Field(default=None, ge=80_000_000)
    """Size of the object store of a local Ray instance, at least 80,000,000 bytes. null: Ray chooses the size."""
    prepare: PreparePoolConfig = PreparePoolConfig()
    segment: SegmentPoolConfig = SegmentPoolConfig()
    writers: AutoCount = "auto"
    """Number of shards to write concurrently. Each writer uses one logical CPU. auto: one writer per four segment
    actors, but at least two."""
    wait_for_nodes: Seconds = Field(default=600, ge=0)
    """Time that a build waits at its start for an autoscaler to add nodes, if the smallest pools don't fit on the
    existing nodes. If the pools still don't fit after this time, the build ends unfinished, with exit code 3."""

    def writers_for(self, segment_actors: int) -> int:
        """Return the number of shards to write concurrently, next to this many segment actors."""
        if self.writers == "auto":
            return max(FEWEST_WRITERS, math.ceil(segment_actors / ACTORS_PER_WRITER))
        return self.writers


class StagePoolConfig(PoolConfig):
    """Actor pool of a custom stage. `actors: auto` starts one actor."""

    num_gpus: float = Field(default=0, ge=0)
    """GPUs per actor, subtracted from the GPUs for segment actors. With 0.5, two actors share a GPU."""
    timeout_s: Seconds = Field(default=600, gt=0)
    """Time limit per image, as in `resources.segment`. A batch may take this long for each of its images."""


def _dotted_name(value: Any) -> Any:
    """Return the dotted name that workers import a class or function by. Return any other value unchanged."""
    if not callable(value):
        return value
    module, name = value.__module__, getattr(value, "__qualname__", None)
    if name is None:  # an instance, or a partial
        raise ValueError(f"expected a class or function, got {type(value).__name__}: pass its arguments as `arguments`")
    if module == "__main__" or "." in name:
        raise ValueError(f"expected a class or function at the top of a module, got {module}.{name}: move it to one")
    return f"{module}.{name}"


Position = Literal["prepare", "segment", "describe"]
DottedName = Annotated[str, BeforeValidator(_dotted_name), Field(pattern=r"^\w+(\.\w+)+$")]


class _OwnCodeConfig(ConfigModel):
    """Your own code. `filters`, `license`, `terms`, and `on_error` are only for code that makes masks."""

    stage: DottedName
    """Dotted name of a class or function, such as `blur.Blur`. Its module must be importable on every node."""
    arguments: dict[str, JsonValue] = {}
    """Arguments to pass to the class or function. The dataset stores them, so never include secrets."""
    batch_size: AutoCount = "auto"
    """Maximum number of images per call. auto: 1 if the code makes masks; otherwise, the number of images in a block
    (see `rows_per_block`)."""
    filters: MaskFilters = MaskFilters()
    """Filters of the masks. Redaction artifacts among masks that a stage adds are dropped at least as strictly as among
    others."""
    license: str | None = Field(default=None, min_length=1)
    """License of the model: an SPDX identifier or a text. null: what the class states."""
    terms: str | None = Field(default=None, min_length=1)
    """Terms of the model: a URL or a text. null: what the class states."""
    on_error: Literal["hold", "reject"] = "hold"
    """Handling of an image for which the code raises an error or returns an invalid mask. hold: the image's shard
    waits, as for any other fault. reject: reject the image as `stage_failed` if it fails again after a control image in
    the same actor."""


class StageConfig(_OwnCodeConfig):
    """Custom stage: your own code, which accepts or rejects images, or adds columns or masks."""

    after: Position = "describe"
    """Built-in stage after which this stage runs. Custom stages that name the same built-in stage run in list order."""
    resources: StagePoolConfig = StagePoolConfig()

    def load(self) -> StageSpec:
        """Import the stage and return its specification. Raises `UsageError` if the specification is invalid."""
        spec = load_stage(self.stage, self.arguments)
        if spec.masks and (self.after != "segment" or spec.wants_original):
            to_add = "to add them to SAM's, set `after: segment` without wants_original"
            raise UsageError(f"the stage {self.stage} makes masks: {to_add}; to replace SAM's, set it as segmenter")
        of_masks = sorted({"filters", "license", "terms", "on_error"} & self.model_fields_set)
        if of_masks and not spec.masks:
            raise UsageError(f"the stage {self.stage} adds no masks: remove {' and '.join(of_masks)}")
        if spec.sets_masks and self.after != "describe":
            raise UsageError(f"the stage {self.stage} sets columns of masks: it must come after describe")
        return spec


class SegmenterPoolConfig(StagePoolConfig):
    """Actor pool of a segmenter. `actors: auto` starts one actor per GPU, or one actor if it uses no GPU."""

    num_cpus: float = Field(default=2, gt=0)
    """Logical CPUs per actor. One of them runs the segmenter, and each of the others a thread that encodes masks."""
    num_gpus: float = Field(default=0, ge=0)
    """GPUs per actor. With 0.5, two actors share a GPU."""


class SegmenterConfig(_OwnCodeConfig):
    """Segmenter: your own code, a class or function with `masks = True`, which makes the masks in place of SAM."""

    resources: SegmenterPoolConfig = SegmenterPoolConfig()

    def load(self) -> StageSpec:
        """Import the segmenter and return its specification. Raises `UsageError` if the specification is invalid."""
        spec = load_stage(self.stage, self.arguments)
        if not spec.masks:
            raise UsageError(f"the segmenter {self.stage} doesn't set masks = True, as a class that makes masks must")
        return spec


LOCAL = ResourcesConfig(address="local")
"""Ray on this machine only."""


def _plain_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", value):
        raise ValueError(
            "expected up to 100 letters, digits, dots, hyphens, and underscores, starting with a letter or digit"
        )
    return value


ROWS_PER_BLOCK = 16
"""Default number of rows per block. An H200 takes 8 s for this many rows with all crops."""

FULL_IMAGE_ROWS = 128
"""Default number of rows per block on GPUs without crops. An H200 takes 12 s or more for this many rows."""


class Config(ConfigModel):
    """Configuration of a build. The module docstring sorts the keys into identity, numerics, and runtime."""

    name: Annotated[str, AfterValidator(_plain_name)]
    """Name of the dataset: up to 100 letters, digits, dots, hyphens, and underscores, starting with a letter or
    digit."""
    catalog: str = Field(min_length=1)
    """Path or URI of the source catalog. The file extension selects the format: Parquet, JSON Lines, or CSV. A name
    that ends with a slash is a folder of Parquet files. You can move the catalog, because the first start pins its
    contents rather than its path. To add new rows, pass `--grow`."""
    output: str = Field(min_length=1)
    """Path or URI of the dataset's folder. A local file system must support hard links; a bucket must support
    conditional puts."""
    images_per_shard: int = Field(default=500, ge=1, le=100_000)
    """Catalog rows per shard, 1 to 100,000. A shard is always written, committed, and lost as a whole."""
    license: LicenseConfig
    ingest: IngestConfig = IngestConfig()
    deidentify: DeidentifyConfig = DeidentifyConfig()
    release: ReleaseConfig = ReleaseConfig()
    masks: MasksConfig = MasksConfig()
    model: ModelConfig = ModelConfig()
    curate: CurateConfig = CurateConfig()
    """Settings of `segmint catalog curate`, which filters a catalog before a build. Builds ignore them."""
    stages: tuple[StageConfig, ...] = ()
    """Custom stages. The names that they declare in their code must be unique."""
    segmenter: SegmenterConfig | None = None
    """Your own code that makes the masks, in place of SAM. It excludes `masks`, `model`, and `resources.segment`. null:
    SAM makes the masks."""
    resources: ResourcesConfig = ResourcesConfig()
    storage: StorageOptions = {}
    """Storage options by URI prefix; the longest matching prefix wins. For S3, the options are endpoint_url, profile,
    region, anon, and others. For other schemes, use the options of the fsspec implementation. Credentials are
    refused."""
    assets: str | None = None
    """Path or URI of a mirror: a folder that contains the known weight files under their original names. segmint
    searches the mirror before the cache, installed packages, and the web. null: no mirror."""
    max_reject_ratio: float = Field(default=0.5, gt=0, le=1)
    """Maximum fraction of a shard's rows that may be rejected for the same reason. A shard that exceeds the fraction is
    put on hold. Shards with fewer than 100 rows aren't checked. Deliberate rejections don't count: licenses, curation
    (`duplicate_image`, `unfit`, `opted_out`), refusal lists, and takedowns."""
    max_faults: int = Field(default=0, ge=0)
    """Maximum number of a shard's rows that may be rejected as `persistent_fault`, because their fault persists through
    all attempts and a trial. A row is only rejected if another row passes the same stage afterward; if the stage reads
    images, the other image must come from the same bucket or local folder. 0: such rows keep their shard on hold."""
    stall_timeout: Seconds = Field(default=1800, gt=0)
    """Maximum time during which no row leaves any stage although the stores respond. After this time, the window is
    canceled and its uncommitted shards are retried. Set this above the time that a stage takes for `rows_per_block`
    images."""
    outage_timeout_s: Seconds = Field(default=1800, ge=0)
    """Time that the driver and the workers wait for a store that doesn't respond. After this time, the run ends
    unfinished, with exit code 3. 0: don't wait."""
    window_shards: AutoCount = "auto"
    """Shards per window. Each window is one Ray Data execution. auto: about ten minutes of work at first, then about an
    hour."""
    rows_per_block: AutoCount = "auto"
    """Maximum number of rows per block. Stages pass rows to each other in blocks. Small datasets use smaller blocks.
    auto: 128 on GPUs without crops, otherwise 16."""
    retry_wait_s: Seconds = Field(default=5, ge=0)
    """Wait before retrying shards on hold if no other shards remain. The wait doubles with each stalled window."""
    allow_mixed_numerics: bool = False
    """Let workers compute with numerics other than the dataset's. The last bits of masks then differ."""

    @property
    def detectors_share(self) -> float:
        """Fraction of a GPU that each node reserves for its detector process, or 0 if detectors run on CPUs."""
        if self.deidentify.device == "cpu" or not self.deidentify.detectors:
            return 0.0
        wanted = self.resources.prepare.num_gpus
        return DETECTORS_SHARE if wanted == "auto" else float(wanted)

    def most_rows_per_block(self, *, on_gpu: bool) -> int:
        """Return the maximum number of rows per block, before Ray's limit on a block's size."""
        if self.rows_per_block != "auto":
            return self.rows_per_block
        return FULL_IMAGE_ROWS if on_gpu and not self.masks.settings().crop_n_layers else ROWS_PER_BLOCK

    def load_stages(self) -> list[StageSpec]:
        """Import the custom stages in list order, and then the segmenter, if any.

        Raises `UsageError` if one of them is invalid or a name is used twice.
        """
        specs = [each.load() for each in self.stages]
        if self.segmenter is not None:
            specs.append(self.segmenter.load())
        for place, spec in enumerate(specs):
            if spec.name in [other.name for other in specs[:place]]:
                raise UsageError(f"stages: {spec.stage} has the same name, {spec.name}, as an earlier stage")
        return specs

    @model_validator(mode="after")
    def _one_maker_of_masks(self) -> Self:
        if self.segmenter is None:
            return self
        others: list[str] = [name for name in ("masks", "model") if name in self.model_fields_set]
        others += ["resources.segment"] if "segment" in self.resources.model_fields_set else []
        if others:
            raise ValueError(f"segmenter takes the place of SAM, so remove {' and '.join(others)}")
        return self

    @field_validator("output", "assets")
    @classmethod
    def _allowed_uri(cls, value: str | None) -> str | None:
        # Actors run in different working directories than the command, so make local paths absolute here.
        return None if value is None else validated(absolute)(value)

    @field_validator("catalog")
    @classmethod
    def _allowed_catalog(cls, value: str) -> str:
        return validated(absolute_catalog)(value)


def identity(config: Config, hashes: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return the identity keys as plain JSON values, with profiles resolved. Equal datasets have equal values.

    `hashes` maps the name of each model or detector file to its SHA-256. The result contains the hash instead of the
    name, so moving a file doesn't change the dataset's identity.
    """
    known = hashes or {}
    tree = config.model_dump(
        mode="json",
        include={"name", "images_per_shard", "license", "ingest", "deidentify", "release", "masks"},
        exclude={
            "ingest": {"timeout_s"},
            "deidentify": {"device"},
            "masks": {"points_per_chunk"},
            "license": {"policy_date", "refuse"},
        },
    )
    tree["license"]["allow"] = sorted(set(tree["license"]["allow"]))
    tree["license"]["respect_opt_out"] = config.license.respects_opt_out
    tree["ingest"]["formats"] = list(config.ingest.decoded)
    tree["deidentify"]["rule"] = RULE
    tree["deidentify"]["left_alone"] = known.get(config.deidentify.left_alone or "", config.deidentify.left_alone)
    specs = config.load_stages()
    if config.segmenter is None:
        tree["model"] = {"weights": known.get(config.model.weights, config.model.weights)}
        tree["masks"]["drop_redaction_artifacts"] = config.masks.artifact_iou or "off"
    else:
        del tree["masks"]
        filters = config.segmenter.filters.model_dump(mode="json", exclude_none=True)
        tree["segmenter"] = {**specs.pop().identity, "filters": filters}
    if config.stages:
        tree["stages"] = {}
        for place, (each, spec) in enumerate(zip(config.stages, specs, strict=True)):
            tree["stages"][spec.name] = {"place": place, "after": each.after, **spec.identity}
            if spec.masks:
                tree["stages"][spec.name]["filters"] = each.filters.model_dump(mode="json", exclude_none=True)
    for part in tree["deidentify"].values():
        if isinstance(part, dict) and part.get("detector") in known:
            part["detector"] = known[part["detector"]]
    return tree


def as_pinned(config: Config, begun: Mapping[str, Any]) -> Config:
    """Replace each `auto` among the identity keys with the value that the dataset pinned, and return the configuration.

    The affected keys are `license.respect_opt_out`, `ingest.formats`, `masks.drop_redaction_artifacts`, and
    `model.weights`. If the dataset's weights have no known name, `model.weights` remains `auto`. Raises `UsageError` if
    this version doesn't support one of the dataset's formats.
    """
    license, masks, read = config.license, config.masks, config.ingest
    if license.respect_opt_out == "auto":
        respected = begun.get("license", {}).get("respect_opt_out", False)  # a damaged manifest may lack it
        license = license.model_copy(update={"respect_opt_out": respected})
    if read.formats == "auto":
        read = read.model_copy(update={"formats": formats_of(begun)})
    if masks.drop_redaction_artifacts == "auto":
        begun_with = begun.get("masks", {}).get("drop_redaction_artifacts", "off")
        masks = masks.model_copy(update={"drop_redaction_artifacts": begun_with})
    model = config.model
    if model.weights == AUTO:
        sha256 = begun.get("model", {}).get("weights")
        names = [asset.name for asset in ASSETS.values() if asset.sha256 == sha256]
        model = model.model_copy(update={"weights": names[0] if names else AUTO})
    return config.model_copy(update={"license": license, "ingest": read, "masks": masks, "model": model})


def load_config(path_or_uri: str, overrides: list[str] | None = None) -> Config:
    """Read a YAML file, apply overrides such as "masks.points_per_side=16", and validate the result.

    Raises a single `UsageError` that lists every invalid key and value with its location.
    """
    from segmint.pipeline.config.yaml_file import load

    return load(path_or_uri, overrides or [], Config)


def detector_hashes(config: Config, manifest: DatasetManifest) -> dict[str, str]:
    """Return the pinned SHA-256 of each detector file, keyed by the file's name in the configuration."""
    begun = manifest.config["deidentify"]
    return {file: begun[kind]["detector"] for kind, file in config.deidentify.detector_files.items()}


def read_listed(config: Config, manifest: DatasetManifest | None = None) -> Mapping[str, Entries]:
    """Read the regions to leave alone, by the SHA-256 of the photograph. Without a list, there are none.

    Raises `UsageError` if the list is invalid, and `AssetError` if it is missing or not the one that `manifest` pinned.
    """
    name = config.deidentify.left_alone
    if name is None:
        return {}
    storage = Storage(config.storage)
    file = resolve(name, mirror=config.assets, storage=storage)
    expected = None if manifest is None else manifest.config["deidentify"]["left_alone"]
    return read_left_alone(Location(storage, str(pinned(file, expected))))


def read_refused(config: Config) -> RefusalLists:
    """Read the lists of `license.refuse`. Raises the errors of `read_refusal_lists`."""
    storage = Storage(config.storage)
    return read_refusal_lists(Location(storage, file) for file in config.license.refuse)


def prepare_config(config: Config, manifest: DatasetManifest | None = None) -> PrepareConfig:
    """Return the settings of `prepare` for the dataset of `manifest`, or for a new dataset if `manifest` is None.

    If the mask settings cut crops from the originals, or the segmenter wants them, `prepare` keeps the originals.
    Raises the errors of `read_listed`.
    """
    detector_sha256 = {} if manifest is None else detector_hashes(config, manifest)
    # Name of the GPU that the dataset's detectors must run on, or "" for CPUs.
    recorded = "" if manifest is None or config.allow_mixed_numerics else Numerics.recorded(manifest.numerics).detectors
    config = config if manifest is None else as_pinned(config, manifest.config)
    crops = config.masks.original_crops
    if config.segmenter is not None:
        crops = WHOLE_ORIGINAL if config.segmenter.load().wants_original else None
    return PrepareConfig(
        ingest=config.ingest,
        deidentify=config.deidentify,
        release=config.release,
        crops=crops,
        detector_sha256=detector_sha256,
        left_alone=read_listed(config, manifest),
        respect_opt_out=config.license.respects_opt_out,
        detector_numerics=recorded,
    )


def segment_settings(config: Config, numerics: Numerics, manifest: DatasetManifest | None = None) -> SegmentSettings:
    """Return a segment actor's settings for the dataset of `manifest`, or for a new dataset if `manifest` is None.

    If a segmenter makes the masks, no actor uses the settings of SAM.
    """
    config = config if manifest is None else as_pinned(config, manifest.config)
    return SegmentSettings(
        masks=config.masks.settings(numerics.points_per_chunk or None),
        weights=config.model.weights,
        numerics=numerics,
        assets=config.assets,
        storage_options=config.storage,
        allow_mixed_numerics=config.allow_mixed_numerics,
        artifact_iou=config.masks.artifact_iou,
    )


def segmenter_settings(
    segmenter: SegmenterConfig | StageConfig, numerics: Numerics | None = None, artifact_iou: float | None = None
) -> SegmenterSettings:
    """Return the settings of the actors of a segmenter, or of a stage that adds masks.

    If `numerics` is given, the actors must have them. `artifact_iou` is the IoU with a redacted region from which on
    the other masks of an image are dropped, if they are. The added masks are then dropped from the same IoU on, unless
    their own filter starts lower.
    """
    filters = segmenter.filters
    limits = [iou for iou in (artifact_iou, filters.drop_redaction_artifacts) if iou is not None]
    if limits:
        filters = filters.model_copy(update={"drop_redaction_artifacts": min(limits)})
    threads = max(1, int(segmenter.resources.num_cpus) - 1)
    return SegmenterSettings(filters, segmenter.on_error == "reject", threads, numerics)


def recorded_artifact_iou(tree: Mapping[str, Any]) -> float | None:
    """Return the IoU with a redacted region from which on a dataset's build drops masks, from its identity keys.

    Stages that add masks may drop more of theirs. Raises `UsageError` if the keys are invalid.
    """
    try:
        if "segmenter" in tree:
            return MaskFilters.model_validate(tree["segmenter"].get("filters")).drop_redaction_artifacts
        return MasksConfig.model_validate(tree.get("masks")).artifact_iou
    except ValidationError as error:
        raise UsageError(f"the manifest's settings of masks are invalid: {wrong_fields(error)}") from error


def model_terms(segmenter: SegmenterConfig | StageConfig) -> ModelTerms:
    """Return the license and terms of a segmenter's model as a dataset stores them: without credentials, and shortened.

    The segmenter may also be a stage that adds masks. Those in the configuration take precedence. Raises `UsageError`
    if the class states them in an invalid form.
    """
    stated = stated_terms(segmenter.stage, segmenter.arguments)
    license, terms = segmenter.license or stated.license, segmenter.terms or stated.terms
    if license is not None:
        license = canonical_identifier(license.strip()) or fit_to_store(license)
    if terms is not None:
        terms = fit_to_store(terms)
    return ModelTerms(license=license, terms=terms, weights_sha256=stated.weights_sha256)


LARGE_ROWS = 10_000
"""Largest number of rows for which `advice` returns nothing."""


def advice(config: Config, rows: int) -> list[str]:
    """Return a sentence for each default in use that only suits trials, or nothing for up to `LARGE_ROWS` rows."""
    return detector_advice(config) if rows > LARGE_ROWS else []


def detector_advice(config: Config) -> list[str]:
    """If the configuration uses the built-in detectors, return a sentence about them with their measured recall."""
    names = [name for name in config.deidentify.detectors.values() if name in BUNDLED_DETECTORS]
    if not names:
        return []
    trials = "the built-in face and plate detectors are for trials; their training data may restrict their use"
    measured = describe_recall(names)
    return [f"{trials}. {measured}" if measured else trials]


def stage_notes(config: Config) -> list[str]:
    """Return a sentence for plans, which leave out custom stages and the masks that they add."""
    if not config.stages:
        return []
    note = "custom stages aren't part of the plan"
    adding = [spec.label for spec in config.load_stages()[: len(config.stages)] if spec.masks]
    if adding:
        note += f", nor are the time, masks, and bytes that {' and '.join(adding)} will add"
    return [note]
