"""The configuration: one frozen, typed tree, composed of the parts that the stages take.

There are three kinds of keys:

- *identity*: decides what is in the dataset; pinned by `dataset.json` at the first start, refused when
  changed. `name`, `images_per_shard`, `license`, `ingest` except its time-out, `deidentify` except its device,
  `release`, `masks` with the profile's defaults filled in, `model.weights`.
- *numerics*: decides the last bits; resolved at the first start and pinned with the identity.
  `masks.points_per_chunk`, `model.device`, `model.precision`, `model.encoder`, `model.threads`,
  `deidentify.device`.
- *runtime*: may differ in every run. `catalog` (its contents are pinned by their hash), `output`, `assets`,
  `curate` (before a build), `resources`, `storage`, `license.policy_date` (pinned by the first start),
  `ingest.timeout_s`, `stall_timeout`, `outage_timeout_s`, `retry_wait_s`, `max_reject_ratio`,
  `window_shards`, `rows_per_block`, `allow_mixed_numerics`.
"""

import re
from collections.abc import Mapping
from datetime import date
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from segmint.catalogs.licenses import LicensePolicy, validate_identifier
from segmint.infra.errors import UsageError
from segmint.infra.storage.storage import Storage
from segmint.infra.units import Bytes, Seconds
from segmint.infra.uris import absolute
from segmint.operators.curate.settings import CurateConfig
from segmint.operators.prepare.deidentify import RULE, DeidentifyConfig
from segmint.operators.prepare.ingest_config import IngestConfig, formats_of
from segmint.operators.prepare.release import ReleaseConfig
from segmint.operators.segment.mask_config import MasksConfig, ModelConfig


class _ConfigModel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True)


def _storage_options(value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    try:
        Storage(value)
    except UsageError as error:
        raise ValueError(str(error)) from error
    return value


StorageOptions = Annotated[dict[str, dict[str, Any]], AfterValidator(_storage_options)]
"""Options by URI prefix, as `Storage` takes them."""


def _actors(value: Any) -> Any:
    if value == "auto" or (type(value) is int and value >= 1):
        return value
    if isinstance(value, list | tuple) and [type(bound) for bound in value] == [int, int]:
        least, most = value
        if 1 <= least <= most:
            return (least, most)
    raise ValueError("expected auto, a whole number from 1, or [min, max] with 1 <= min <= max")


def _gpus(value: Any) -> Any:
    if value == "auto" or (isinstance(value, int | float) and not isinstance(value, bool) and value >= 0):
        return value
    raise ValueError("expected auto or a number of GPUs from 0; a part such as 0.5 lets two actors share one")


def _share(value: Any) -> Any:
    if value == "auto" or (isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1):
        return value
    raise ValueError("expected auto or a share of one GPU, over 0 and at most 1")


def _auto_or_bool(value: Any) -> Any:
    if value == "auto" or isinstance(value, bool):
        return value
    raise ValueError("expected auto, true or false")


Actors = Annotated[Literal["auto"] | int | tuple[int, int], BeforeValidator(_actors)]
Gpus = Annotated[Literal["auto"] | float, BeforeValidator(_gpus)]
Share = Annotated[Literal["auto"] | float, BeforeValidator(_share)]

DETECTORS_SHARE = 0.1
"""The share of a GPU for a node's detector process where the configuration does not say another."""


class LicenseConfig(_ConfigModel):
    """The licenses that images may have."""

    allow: tuple[str, ...] = Field(min_length=1)
    """SPDX identifiers, or `LicenseRef-…` for private agreements."""
    require_redistributable: bool = False
    """Whether to accept only rows with `redistributable: true`."""
    respect_opt_out: Annotated[Literal["auto"] | bool, BeforeValidator(_auto_or_bool)] = "auto"
    """Whether to refuse images whose rights holder forbids training, by the image's metadata or by the catalog; auto:
    as the dataset was begun, and in a new one true."""
    policy_date: date | None = None
    """The day on which licenses must still be valid; null: the day of the dataset's first start, which pins it."""

    @field_validator("allow")
    @classmethod
    def _known_identifiers(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        try:
            return tuple(validate_identifier(identifier) for identifier in value)
        except UsageError as error:
            raise ValueError(str(error)) from error

    def policy(self, policy_date: date) -> LicensePolicy:
        """Return the policy that judges rows; licenses must be valid on `policy_date`."""
        return LicensePolicy(frozenset(self.allow), self.require_redistributable, policy_date, self.respects_opt_out)

    @property
    def respects_opt_out(self) -> bool:
        """`respect_opt_out`; for `auto`, that of a new dataset."""
        return True if self.respect_opt_out == "auto" else self.respect_opt_out


class PoolConfig(_ConfigModel):
    """The actors of one stage."""

    actors: Actors = "auto"
    """auto: one segment actor per GPU; without GPUs, one per machine of a cluster or, on one machine, as many as its
    cores and memory hold; `prepare` grows into the remaining cores."""
    num_cpus: float = Field(default=1, gt=0)
    """Logical CPUs of one actor. Stages must differ, or Ray runs them as one."""


class PreparePoolConfig(PoolConfig):
    """The actors that read, de-identify and encode."""

    num_gpus: Share = "auto"
    """Where `deidentify.device` is cuda: the share of one GPU of each node for the detector process that the node's
    actors have in common; auto: 0.1. The actors themselves take none."""


class SegmentPoolConfig(PoolConfig):
    """The actors that hold the model."""

    num_cpus: float = Field(default=2, gt=0)
    """Logical CPUs of one actor; on a GPU also its threads that decode, and as many that finish, at least two each."""
    num_gpus: Gpus = "auto"
    """GPUs of one actor; auto: 1 where the device is cuda, less the share of a detector process; else 0."""
    accelerator_type: str = Field(default="auto", min_length=1)
    """The kind of GPU, as Ray names it (`H100`), in a cluster that has several; auto: the kind that the dataset was
    begun with, which is any for a new one."""
    timeout_s: Seconds = Field(default=600, gt=0)
    """Seconds for decoding one image, for computing its masks and for finishing them; a worker that takes longer for
    one of these is ended."""


class ResourcesConfig(_ConfigModel):
    """Where the run computes, and with how much."""

    address: str = "auto"
    """auto: the cluster that RAY_ADDRESS names, and without it a local Ray; local: always a local one; or an
    address."""
    object_store_memory: Bytes | None = Field(default=None, ge=80_000_000)
    """Bytes, for a local Ray; null: Ray decides."""
    prepare: PreparePoolConfig = PreparePoolConfig()
    segment: SegmentPoolConfig = SegmentPoolConfig()


LOCAL = ResourcesConfig(address="local")
"""Ray on this machine only."""


def _plain_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", value):
        raise ValueError("expected at most 100 letters, digits, dots, hyphens and underscores, a letter or digit first")
    return value


class Config(_ConfigModel):
    """The whole configuration of a build. The module's docstring says which keys are identity and which runtime."""

    name: Annotated[str, AfterValidator(_plain_name)]
    """The dataset's name: letters, digits, dot, hyphen and underscore, at most 100."""
    catalog: str = Field(min_length=1)
    """Path or URI of the source catalog: Parquet, JSON Lines or CSV by its ending."""
    output: str = Field(min_length=1)
    """Path or URI of the dataset's folder."""
    images_per_shard: int = Field(default=500, ge=1, le=100_000)
    license: LicenseConfig
    ingest: IngestConfig = IngestConfig()
    deidentify: DeidentifyConfig = DeidentifyConfig()
    release: ReleaseConfig = ReleaseConfig()
    masks: MasksConfig = MasksConfig()
    model: ModelConfig = ModelConfig()
    curate: CurateConfig = CurateConfig()
    """What `segmint catalog curate` refuses in a catalog, before a build."""
    resources: ResourcesConfig = ResourcesConfig()
    storage: StorageOptions = {}
    """Options by URI prefix, the longest wins: endpoint_url, profile, region, anon, …; never credentials."""
    assets: str | None = None
    """Path or URI of a folder that mirrors the weight files."""
    max_reject_ratio: float = Field(default=0.5, gt=0, le=1)
    """A shard of 100 rows or more is put on hold if more than this share is refused for one reason, licenses aside."""
    stall_timeout: Seconds = Field(default=1800, gt=0)
    """Seconds without a row leaving any stage, while the stores answer, after which a window is ended and its rest
    tried again."""
    outage_timeout_s: Seconds = Field(default=1800, ge=0)
    """Seconds to wait for a store that does not answer; then the run ends unfinished."""
    window_shards: int = Field(default=200, ge=1)
    """Shards in one Ray Data execution."""
    rows_per_block: int = Field(default=16, ge=1)
    """Rows that travel between stages together."""
    retry_wait_s: Seconds = Field(default=5, ge=0)
    """Seconds before shards that were on hold are tried again when nothing else is left to do; doubles each time."""
    allow_mixed_numerics: bool = False
    """Whether workers may compute with other numerics than the dataset was begun with."""

    @property
    def detectors_share(self) -> float:
        """The share of a GPU for the detector process of each node; 0 where detectors run on CPUs."""
        if self.deidentify.device == "cpu" or not self.deidentify.detectors:
            return 0.0
        wanted = self.resources.prepare.num_gpus
        return DETECTORS_SHARE if wanted == "auto" else float(wanted)

    @field_validator("catalog", "output", "assets")
    @classmethod
    def _allowed_uri(cls, value: str | None) -> str | None:
        # Actors have other current folders than the command, so local paths are made absolute here.
        try:
            return None if value is None else absolute(value)
        except UsageError as error:
            raise ValueError(str(error)) from error


def identity(config: Config, hashes: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return the identity keys as plain JSON values, profiles resolved; equal for equal datasets.

    `hashes` maps a model or detector file, as the configuration names it, to its SHA-256, which replaces the name:
    the same file in another place gives the same dataset.
    """
    known = hashes or {}
    tree = config.model_dump(
        mode="json",
        include={"name", "images_per_shard", "license", "ingest", "deidentify", "release", "masks"},
        exclude={
            "ingest": {"timeout_s"},
            "deidentify": {"device"},
            "masks": {"points_per_chunk"},
            "license": {"policy_date"},
        },
    )
    tree["license"]["allow"] = sorted(set(tree["license"]["allow"]))
    tree["license"]["respect_opt_out"] = config.license.respects_opt_out
    tree["model"] = {"weights": known.get(config.model.weights, config.model.weights)}
    tree["ingest"]["formats"] = list(config.ingest.decoded)
    tree["deidentify"]["rule"] = RULE
    tree["masks"]["drop_redaction_artifacts"] = config.masks.artifacts
    for part in tree["deidentify"].values():
        if isinstance(part, dict) and part.get("detector") in known:
            part["detector"] = known[part["detector"]]
    return tree


def as_pinned(config: Config, begun: Mapping[str, Any]) -> Config:
    """Return the configuration with each `auto` of an identity key replaced by what the dataset was begun with.

    These are `license.respect_opt_out`, `ingest.formats` and `masks.drop_redaction_artifacts`. Raises `UsageError` for
    formats that this version does not have.
    """
    license, masks, read = config.license, config.masks, config.ingest
    if license.respect_opt_out == "auto":
        respected = begun.get("license", {}).get("respect_opt_out", False)  # a damaged manifest may say nothing
        license = license.model_copy(update={"respect_opt_out": respected})
    if read.formats == "auto":
        read = read.model_copy(update={"formats": formats_of(begun)})
    if masks.drop_redaction_artifacts == "auto":
        begun_with = begun.get("masks", {}).get("drop_redaction_artifacts", "off")
        masks = masks.model_copy(update={"drop_redaction_artifacts": begun_with})
    return config.model_copy(update={"license": license, "ingest": read, "masks": masks})


def load_config(path_or_uri: str, overrides: list[str] | None = None) -> Config:
    """Read a YAML file, apply overrides such as "masks.points_per_side=16", and check everything.

    Raises one `UsageError` that lists every wrong key and value with its place.
    """
    from segmint.pipeline.config.yaml_file import load

    return load(path_or_uri, overrides or [], Config)
