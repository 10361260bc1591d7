"""Writer of `segmint audit --evidence`: a verifiable folder that documents an audit and its results.

`SHA256SUMS` lists all other files and is written last. `check.py` checks the folder without segmint.
"""

import hashlib
import importlib.util
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from segmint.catalogs.dataset.manifest import (
    DatasetManifest,
    load_latest_manifest,
    manifest_name,
    require_published,
)
from segmint.catalogs.dataset.outputs import note_output
from segmint.catalogs.dataset.versions.digest import take_snapshot
from segmint.catalogs.findings import SENTENCES
from segmint.infra.assets.cache import sha256_of
from segmint.infra.assets.known import ASSETS
from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location
from segmint.infra.uris import is_below
from segmint.infra.version import VERSION
from segmint.pipeline.quality.audit.audit import AuditOptions
from segmint.pipeline.quality.audit.result import AuditReport
from segmint.pipeline.quality.audit.result_json import to_dict
from segmint.pipeline.quality.audit.result_text import result_lines
from segmint.pipeline.quality.evidence import check
from segmint.pipeline.quality.evidence.signatures import is_signature, signature_path, signers
from segmint.pipeline.quality.study.privacy.score import PrivacyScore
from segmint.pipeline.serving.documents import document_templates

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
        """Format the result as a human-readable line."""
        return f"evidence: {self.folder}; {check.SUMS} sha256:{self.sha256}"


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
    paths = {} if number is None else {key: signature_path(number, key) for key in signers(dataset, number)}
    signatures = [(key, path) for key, path in paths.items() if is_signature(dataset / path, key, snapshot.digest)]
    not_signed = sorted(paths.keys() - dict(signatures))
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
    files[check.PAGE] = render_evidence(json.loads(files[check.EVIDENCE]), report, study, not_signed).encode()
    sums = "".join(f"{hashlib.sha256(files[path]).hexdigest()}  {path}\n" for path in sorted(files)).encode()
    sha256 = hashlib.sha256(sums).hexdigest()
    if not (folder / check.EVIDENCE).put_if_absent(files[check.EVIDENCE]):  # only one of several runs continues
        raise UsageError(f"{folder} already contains files: another run wrote {check.EVIDENCE}. Pass an empty folder")
    note_output(dataset, "audit --evidence", folder, {check.SUMS: sha256})
    for path, data in {**files, check.SUMS: sums}.items():
        (folder / path).put(data)
    return Evidence(str(folder), sha256, (*sorted(files), check.SUMS))


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


def _json(value: Mapping[str, Any]) -> bytes:
    return f"{json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)}\n".encode()


def render_evidence(
    evidence: Mapping[str, Any], report: AuditReport, study: PrivacyScore | None, not_signed: Sequence[str]
) -> str:
    """Render an HTML page with the contents of `evidence.json` and the output of `segmint audit`.

    `not_signed` contains the keys of signature files that aren't valid signatures of the digest.
    """
    return _TEMPLATES.get_template("evidence.html.j2").render(
        evidence=evidence,
        sentences={code.value: sentence for code, sentence in SENTENCES.items()},
        lines="\n".join(result_lines(report)),
        study=study,
        not_signed=not_signed,
    )
