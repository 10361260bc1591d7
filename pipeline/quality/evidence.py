"""Writer of `segmint audit --evidence`: a verifiable folder that documents an audit and its results.

`SHA256SUMS` lists all other files and is written last. `files.sha256` lists the dataset's files, and its own hash is in
the line that the dataset's owner signs. Both are in the format of `sha256sum`, so that `sha256sum` and `ssh-keygen` can
check the folder, the dataset, and the signature.
"""

import importlib.util
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from segmint.catalogs.dataset.digest import Snapshot, take_snapshot
from segmint.catalogs.dataset.manifest import (
    DatasetManifest,
    load_latest_manifest,
    manifest_name,
    require_published,
)
from segmint.catalogs.dataset.outputs import note_output
from segmint.catalogs.dataset.versions import files_sha256, list_files
from segmint.catalogs.findings import Code
from segmint.catalogs.layout import bytes_sha256
from segmint.infra.assets import ASSETS, sha256_of
from segmint.infra.errors import UsageError
from segmint.infra.scratch import ScratchFolder
from segmint.infra.storage.location import Location
from segmint.infra.uris import is_below
from segmint.infra.version import VERSION
from segmint.pipeline.quality.audit.audit import AuditOptions
from segmint.pipeline.quality.audit.result import AuditReport, result_lines, to_dict
from segmint.pipeline.quality.signatures import is_signature, key_id, signature_path, signed_line, signer_of, signers
from segmint.pipeline.quality.statistics.ratings import PrivacyScore
from segmint.pipeline.quality.statistics.values import json_file
from segmint.pipeline.serving.documents import document_templates

SCHEMA_VERSION = 2
"""Version of `evidence.json`."""

SUMS = "SHA256SUMS"
EVIDENCE = "evidence.json"
AUDIT = "audit.json"
MANIFEST = "manifest.json"
FILES = "files.sha256"
STUDY = "study.json"
PAGE = "index.html"

_SAME = (  # fields that `evidence.json` repeats from the audit
    *("findings_total", "findings_by_code", "verdict", "checked", "notes"),
    *("unsearched", "not_built", "not_compared", "unusable_commits", "not_checked", "unfinished"),
)

_TEMPLATES = document_templates(Path(__file__).parent / "assets")

_PACKAGES = (
    *("torch", "torchvision", "numpy", "opencv-python-headless", "pillow", "simplejpeg", "pycocotools", "pyarrow"),
    *("facenet-pytorch", "onnxruntime", "agentclpr", "duckdb", "scipy", "cryptography", "ray"),
)


@dataclass(frozen=True)
class Evidence:
    """Result of writing evidence: the folder, its files, and the SHA-256 of `SHA256SUMS`, which covers the files."""

    folder: str
    sha256: str
    files: tuple[str, ...]

    def line(self) -> str:
        return f"evidence: {self.folder}; {SUMS} sha256:{self.sha256}"


def check_target(dataset: Location, folder: Location) -> None:
    """Raise `UsageError` if the dataset or the folder can't be used for evidence. Reads only a little data."""
    require_published(load_latest_manifest(dataset).manifest, dataset, "audited with --evidence")
    if is_below(folder.uri, dataset.uri):
        raise UsageError(f"--evidence: {folder} is inside the dataset {dataset}. Choose a place outside")
    if next(folder.walk(include_temporary=True), None) is not None:
        raise UsageError(f"{folder} already contains files. Pass an empty folder to --evidence")


def write_evidence(
    dataset: Location, report: AuditReport, options: AuditOptions, folder: Location, study: PrivacyScore | None = None
) -> Evidence:
    """Write the evidence of a dataset's complete audit, and of a privacy study if given, to `folder`.

    Raises `UsageError` if the dataset has changed since the audit, or if another run writes to the folder.
    """
    pinned = load_latest_manifest(dataset)
    snapshot = take_snapshot(dataset, use_cache=False)
    if report.version is None or report.version.digest != snapshot.digest:
        raise UsageError(f"{dataset} changed during the audit. Audit again when no other command writes to it")
    number = report.version.number
    name = manifest_name(pinned.generation)
    audit = to_dict(replace(report, dataset=pinned.manifest.name))  # not the path on the auditor's machine
    listed = files_sha256(dataset, snapshot)
    signatures, not_signed = _signatures(dataset, number, snapshot.digest, listed)
    value = {
        "schema_version": SCHEMA_VERSION,
        "dataset": {
            "name": pinned.manifest.name,
            "digest": snapshot.digest,
            "version": number,
            "manifest": name,
            "shards": pinned.manifest.shards,
        },
        "signatures": signatures,
        "when": (options.now or datetime.now(UTC)).strftime("%Y-%m-%dT%H:%M:%SZ"),
        **{name: audit[name] for name in _SAME},
        "options": {
            "sample": options.sample,
            "privacy_sample": "all" if options.privacy_sample is None else options.privacy_sample,
            "complete": options.complete,
            "device": options.device,
        },
        "licenses_asserted": None if audit["licenses"] is None else audit["licenses"]["asserted"],
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
        "study": None if study is None else STUDY,
    }
    files = {
        EVIDENCE: json_file(value),
        AUDIT: json_file(audit),
        MANIFEST: (dataset / name).read(),
        **{each["file"]: (dataset / each["file"]).read() for each in signatures},
        **({} if study is None else {STUDY: json_file(asdict(study))}),
    }
    files[PAGE] = render_evidence(json.loads(files[EVIDENCE]), report, study, listed, not_signed).encode()
    hashes = {path: bytes_sha256(data) for path, data in files.items()} | {FILES: listed}
    sums = "".join(f"{hashes[path]}  {path}\n" for path in sorted(hashes)).encode()
    sha256 = bytes_sha256(sums)
    if not (folder / EVIDENCE).put_if_absent(files[EVIDENCE]):  # only one of several runs continues
        raise UsageError(f"{folder} already contains files: another run wrote {EVIDENCE}. Pass an empty folder")
    note_output(dataset, "audit --evidence", folder, {SUMS: sha256})
    _put_list(dataset, snapshot, folder / FILES)
    for path, data in {**files, SUMS: sums}.items():
        (folder / path).put(data)
    return Evidence(str(folder), sha256, (*sorted(hashes), SUMS))


def _signatures(
    dataset: Location, number: int | None, digest: str, files: str
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the valid signatures of a version with what they cover, and the ids of the keys of all others."""
    valid: list[dict[str, Any]] = []
    invalid: list[str] = []
    if number is None:
        return valid, invalid
    for key in signers(dataset, number):
        path = signature_path(number, key)
        data = (dataset / path).read()
        public = signer_of(data)
        covers_files = is_signature(data, public, signed_line(digest, files))
        if key_id(public) == key and (covers_files or is_signature(data, public, signed_line(digest))):
            valid.append({"key_id": key, "file": path, "covers_files": covers_files})
        else:
            invalid.append(key)
    return valid, invalid


def _put_list(dataset: Location, snapshot: Snapshot, file: Location) -> None:
    """Write the list of a snapshot's files, which can be larger than memory, to a file."""
    with ScratchFolder() as scratch:
        path = Path(scratch, FILES)
        with path.open("wb") as stream:
            stream.writelines(f"{each.line()}\n".encode() for each in list_files(dataset, snapshot))
        file.put_file(path)


def _detector_files(manifest: DatasetManifest, report: AuditReport) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the name of each detector of the build or the audit, with the SHA-256 of its files on this machine.

    For a custom detector of the build, there are no files here, because the manifest only contains its SHA-256.
    """
    config = manifest.config.get("deidentify") or {}
    names = [(config.get(kind) or {}).get("detector") for kind in ("faces", "plates")]
    for name in dict.fromkeys(name for name in names if isinstance(name, str)):
        yield name, _bundled(name)
    for each in report.privacy.detectors if report.privacy is not None else ():
        if each.name not in names:
            yield each.name, {each.name: each.sha256} if each.sha256 is not None else _bundled(each.name)


def _bundled(name: str) -> dict[str, str]:
    """Return the SHA-256 of a detector's files if it ships with segmint, or nothing otherwise."""
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


def render_evidence(
    evidence: Mapping[str, Any],
    report: AuditReport,
    study: PrivacyScore | None,
    list_sha256: str,
    not_signed: Sequence[str],
) -> str:
    """Render an HTML page with the contents of `evidence.json` and the output of `segmint audit`.

    `list_sha256` is the SHA-256 of the list of the dataset's files. `not_signed` contains the keys of signature files
    that aren't valid signatures of the digest.
    """
    return _TEMPLATES.get_template("evidence.html.j2").render(
        evidence=evidence,
        sentences={code.value: code.sentence for code in Code},
        lines="\n".join(result_lines(report)),
        study=study,
        list_sha256=list_sha256,
        not_signed=not_signed,
    )
