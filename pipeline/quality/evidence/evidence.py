"""`segmint audit --evidence`: a folder that says what was audited, how, and what was found, and that others can check.

`SHA256SUMS` names all other files and is put last; `check.py` checks the folder without segmint, and
`segmint verify` by its own copy of that file.
"""

import errno
import hashlib
import importlib.util
import json
import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from segmint.catalogs.dataset.manifest import DatasetManifest, load_latest_manifest, manifest_generations, manifest_name
from segmint.catalogs.dataset.outputs import note_output, refuse_inside
from segmint.catalogs.dataset.tombstones import TOMBSTONES
from segmint.catalogs.dataset.versions.digest import short_digest, take_snapshot
from segmint.catalogs.findings import SENTENCES
from segmint.catalogs.layout import COMMITS, MANIFEST
from segmint.catalogs.layout import MANIFEST as DATASET_MANIFEST
from segmint.infra.assets.cache import sha256_of
from segmint.infra.assets.known import ASSETS
from segmint.infra.errors import UsageError
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location
from segmint.infra.threads import map_ahead
from segmint.infra.uris import LOCAL, local_path, scheme
from segmint.infra.version import VERSION
from segmint.pipeline.quality.audit.audit import AuditOptions
from segmint.pipeline.quality.audit.result import AuditReport
from segmint.pipeline.quality.audit.result_json import to_dict
from segmint.pipeline.quality.audit.result_text import result_lines
from segmint.pipeline.quality.evidence import check
from segmint.pipeline.quality.study.privacy.score import PrivacyScore
from segmint.pipeline.quality.versions.signatures import read_public_key, signature_path, signers
from segmint.pipeline.serving.documents import document_templates

_TEMPLATES = document_templates(Path(__file__).parent / "assets")

_PACKAGES = (
    *("torch", "torchvision", "numpy", "opencv-python-headless", "pillow", "simplejpeg", "pycocotools", "pyarrow"),
    *("facenet-pytorch", "onnxruntime", "agentclpr", "duckdb", "imagehash", "scipy", "cryptography", "ray"),
)

T = TypeVar("T")

_THREADS = 8

_AHEAD = 64


@dataclass(frozen=True)
class Evidence:
    """What was written: the folder, and the SHA-256 of its `SHA256SUMS`, which names all that is in it."""

    folder: str
    sha256: str
    files: tuple[str, ...]

    def line(self) -> str:
        """Return the result as a line for a person."""
        return f"evidence: {self.folder}; {check.SUMS} sha256:{self.sha256}"


def check_target(dataset: Location, folder: Location) -> None:
    """Raise `UsageError` if there can be no evidence of this dataset, or not in this folder; reads little."""
    if not manifest_generations(dataset):
        raise UsageError(
            f"{dataset} is not a segmint dataset: no {DATASET_MANIFEST}, and without it there is no version of which "
            "there could be evidence: leave out --evidence"
        )
    refuse_inside(dataset, folder, "--evidence")
    if folder.list():
        raise UsageError(f"{folder} has files already: name an empty folder with --evidence")


def write_evidence(
    dataset: Location, report: AuditReport, options: AuditOptions, folder: Location, study: PrivacyScore | None = None
) -> Evidence:
    """Write the evidence of an audit of the whole dataset, and of a privacy study of it, into the folder `folder`.

    Raises `UsageError` if the dataset has changed since it was audited, and if another run writes into the folder.
    """
    pinned = load_latest_manifest(dataset)
    snapshot = take_snapshot(dataset, use_cache=False)
    if report.version is None or report.version.digest != snapshot.digest:
        raise UsageError(f"{dataset} was changed while it was audited: audit again when nothing writes to it")
    number = report.version.number
    name = manifest_name(pinned.generation)
    audit = to_dict(replace(report, dataset=pinned.manifest.name))  # not where it lies on somebody's machine
    signatures = [] if number is None else [(key, signature_path(number, key)) for key in signers(dataset, number)]
    value = {
        "schema_version": check.SCHEMA_VERSION,
        "dataset": {
            "name": pinned.manifest.name,
            "digest": snapshot.digest,
            "version": number,
            "manifest": name,
            "shards": pinned.manifest.shards,
        },
        "signatures": [{"key_id": key, "file": path} for key, path in signatures],
        "when": (options.now or datetime.now(UTC)).strftime("%Y-%m-%dT%H:%M:%SZ"),
        **{name: audit[name] for name in check.SAME},
        "options": {
            "sample": options.sample,
            "privacy_sample": "all" if options.privacy_sample is None else options.privacy_sample,
            "complete": options.complete,
            "device": options.device,
        },
        "searched_by": (audit["privacy"] or {}).get("detectors", []),
        "detector_files": dict(_detector_files(pinned.manifest, report)),
        "built_with": {
            "code_version": pinned.manifest.code_version,
            "deidentify": pinned.manifest.config.get("deidentify"),
            "weights": pinned.manifest.weights.model_dump(),
            "numerics": pinned.manifest.numerics,
        },
        "software": {"segmint": VERSION, "python": platform.python_version(), "platform": platform.platform()}
        | dict(_installed()),
        "study": None if study is None else check.STUDY,
    }
    files = {
        check.EVIDENCE: _json(value),
        check.AUDIT: _json(audit),
        check.MANIFEST: (dataset / name).read(),
        check.LEAVES: "".join(f"{leaf.line()}\n" for leaf in snapshot.leaves).encode(),
        **{path: (dataset / path).read() for _, path in signatures},
        **({} if study is None else {check.STUDY: _json(asdict(study))}),
        check.CHECK: Path(check.__file__).read_bytes(),
    }
    files[check.PAGE] = render_evidence(json.loads(files[check.EVIDENCE]), report, study).encode()
    sums = "".join(f"{hashlib.sha256(files[path]).hexdigest()}  {path}\n" for path in sorted(files)).encode()
    sha256 = hashlib.sha256(sums).hexdigest()
    if not (folder / check.EVIDENCE).put_if_absent(files[check.EVIDENCE]):  # of several runs one goes on
        raise UsageError(f"{folder} has files already: another run put {check.EVIDENCE} there; name an empty folder")
    note_output(dataset, "audit --evidence", folder, {check.SUMS: sha256})
    for path, data in {**files, check.SUMS: sums}.items():
        (folder / path).put(data)
    return Evidence(str(folder), sha256, (*sorted(files), check.SUMS))


def _detector_files(manifest: DatasetManifest, report: AuditReport) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield each detector of the build or of the audit by its name, with the SHA-256 of its files as installed here.

    A build's own detector is a SHA-256 in the manifest, and has no file here.
    """
    config = manifest.config.get("deidentify") or {}
    names = [(config.get(kind) or {}).get("detector") for kind in ("faces", "plates")]
    for name in dict.fromkeys(name for name in names if isinstance(name, str)):
        yield name, _bundled(name)
    for each in report.privacy.detectors if report.privacy is not None else ():
        if each.name not in names:
            yield each.name, {each.name: each.sha256} if each.sha256 is not None else _bundled(each.name)


def _bundled(name: str) -> dict[str, str]:
    """Return the SHA-256 of the files of a detector that comes with segmint; empty for any other."""
    if name in ASSETS:
        return {ASSETS[name].file_name: ASSETS[name].sha256}
    spec = importlib.util.find_spec("facenet_pytorch") if name == "mtcnn" else None
    folders = [Path(folder) / "data" for folder in (spec.submodule_search_locations or ())] if spec else []
    return {file.name: sha256_of(file) for folder in folders for file in sorted(folder.glob("[pro]net.pt"))}


def _installed() -> Iterator[tuple[str, str]]:
    for package in _PACKAGES:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            continue


def _json(value: Mapping[str, Any]) -> bytes:
    return f"{json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)}\n".encode()


def render_evidence(evidence: Mapping[str, Any], report: AuditReport, study: PrivacyScore | None) -> str:
    """Return the page as HTML: what `evidence.json` says, and the audit as `segmint audit` prints it."""
    return _TEMPLATES.get_template("evidence.html.j2").render(
        evidence=evidence,
        sentences={code.value: sentence for code, sentence in SENTENCES.items()},
        lines="\n".join(result_lines(report)),
        study=study,
    )


@dataclass(frozen=True)
class EvidenceResult:
    """The result of checking a folder of evidence.

    `digest` and `audit_summary` are None if there are problems. No signature covers what the audit says. `verified` is
    whether it is what the auditor published: there is no problem, and the SHA-256 of SHA256SUMS was given.
    """

    evidence: str
    sha256: str | None  # of SHA256SUMS
    problems: tuple[str, ...]
    verified: bool
    checked_key: str | None  # id of the key that signed the digest
    not_covered: tuple[str, ...] | None  # what the dataset has besides the files of the digest; None: it was not read
    digest: str | None  # of the dataset
    audit_summary: dict[str, Any] | None  # version, when, verdict
    text: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the result for JSON."""
        return {name: value for name, value in asdict(self).items() if name != "text"}

    def lines(self) -> list[str]:
        """Return the result as lines for people."""
        return [*self.text, *([] if self.digest is None else [f"dataset digest: {short_digest(self.digest)}"])]


def is_evidence(folder: Location) -> bool:
    """Whether a folder has evidence of an audit, and not a dataset."""
    names = {entry.name for entry in folder.list()}
    return bool(names & {check.SUMS, check.EVIDENCE}) and not manifest_generations(folder)


def verify_evidence(
    folder: Location, key: Location | None = None, dataset: Location | None = None, sums: str | None = None
) -> EvidenceResult:
    """Check a folder of evidence, as far as it is given with the key that signed the digest, dataset and SHA-256.

    Raises `UsageError` for a key that cannot be used, and if there is no dataset there.
    """
    raw = None if key is None else read_public_key(key).public_bytes_raw()
    if dataset is not None and not manifest_generations(dataset):
        raise UsageError(f"{dataset} is not a segmint dataset: no {MANIFEST}. Check the path of --dataset")
    others: list[str] = []
    if scheme(folder.uri) == LOCAL:
        names, others = _files_in(folder)
    else:
        names = {entry.name for entry in folder.walk(include_temporary=True)}

    def read(name: str) -> bytes:
        return _found(name, (folder / name).read)

    done = check.EvidenceCheck(others) if others else check.check_files(names, read, sums, raw)
    if dataset is not None and not done.problems:
        _check_dataset(dataset, done)
    evidence = None if done.problems else done.evidence
    return EvidenceResult(
        evidence=str(folder),
        sha256=done.sums,
        problems=tuple(done.problems),
        verified=not done.problems and sums is not None,
        checked_key=None if raw is None else check.key_id(raw),
        not_covered=None if done.later is None else tuple(done.later),
        digest=evidence and evidence["dataset"]["digest"],
        audit_summary=evidence
        and {"version": evidence["dataset"]["version"], "when": evidence["when"], "verdict": evidence["verdict"]},
        text=tuple(check.lines_about(done, sums is not None, raw)),
    )


def _files_in(folder: Location) -> tuple[set[str], list[str]]:
    try:
        return check.files_in(local_path(folder.uri))
    except OSError as error:
        raise UsageError(f"{folder} cannot be read: {error.strerror or error}") from error


def _check_dataset(dataset: Location, done: check.EvidenceCheck) -> None:
    """Read the files of the digest, and look for those that it does not cover."""

    def open_file(path: str) -> BinaryIO:
        return _found(path, (dataset / path).open)

    def problems(leaf: tuple[str, str]) -> list[str]:
        return list(check.wrong_in_dataset(*leaf, open_file))

    for found in map_ahead(problems, done.leaves.items(), _THREADS, _AHEAD, "leaves"):
        done.problems += [f"{dataset}/{problem}" for problem in found]
    listed = [("", dataset), *((f"{name}/", dataset / name) for name in (COMMITS, TOMBSTONES))]
    names = {f"{prefix}{entry.name}" for prefix, folder in listed for entry in folder.list()} - done.leaves.keys()
    done.later = sorted(filter(check.COVERED.fullmatch, names))


def _found(path: str, read: Callable[[], T]) -> T:
    """Return what `read` returns; an absent file is an `OSError`, as `check` expects."""
    try:
        return read()
    except NotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, "no such file", path) from error
