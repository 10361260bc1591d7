"""A photograph hidden in committed files, by somebody who makes all hashes match again, is found by the audit."""

import io
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from typer.testing import CliRunner, Result

from segmint.catalogs.dataset.commits import Reservation
from segmint.catalogs.dataset.outputs import OUTPUTS, note_output
from segmint.catalogs.dataset.summaries import CommitSums, summary_json
from segmint.catalogs.dataset.tombstones import TakedownRequest, Tombstone
from segmint.catalogs.dataset.versions.record import put_version
from segmint.catalogs.findings import Code
from segmint.catalogs.layout import canonical_json, fingerprint
from segmint.catalogs.parquet import PARQUET_OPTIONS
from segmint.operators.audit.parquet_parts import ParquetCheck
from segmint.operators.schemas import SCHEMAS
from segmint.pipeline.commands.cli import app
from segmint.pipeline.corrections.credits import begin_amendment
from segmint.pipeline.quality.audit.canonical import audit_canonical_json, check_catalog_part
from segmint.pipeline.quality.audit.integrity import audit_integrity
from segmint.pipeline.quality.evidence.signatures import sign_version
from tests.support.locations import location_of
from tests.support.planted import PLANTS, by_another_pyarrow, edit_file, edit_part, original, parquet_metadata, spaces
from tests.support.planting import LATER, first_part

OTHER_CODES = {
    "tar_member": Code.TAR_MEMBERS,
    "jpeg_comment": Code.JPEG_METADATA,
    "jpeg_after_the_end": Code.JPEG_METADATA,
    "jpeg_scan_tail": Code.BAD_JPEG,
    "jpeg_short_scan_tail": Code.BAD_JPEG,
    "commit_key_twice": Code.BAD_COMMIT,
    "commit_spaces": Code.BAD_COMMIT,
}
"""Codes of the places that have another one than `not_canonical`."""


def audit(dataset: Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["audit", str(dataset), "--integrity-only", *options])


@pytest.mark.parametrize("name", PLANTS)
def test_a_hidden_photograph_is_found_in_every_place(dataset: Path, name: str) -> None:
    put_version(location_of(dataset), "build")
    PLANTS[name](dataset)
    report = audit_integrity(location_of(dataset), now=LATER)
    assert report.findings.counts == {OTHER_CODES.get(name, Code.NOT_CANONICAL): 1}


def test_a_photograph_in_the_catalog_is_found(dataset: Path) -> None:
    edit_part(dataset, parquet_metadata)
    (finding,) = audit_integrity(location_of(dataset), now=LATER).findings
    assert (finding.code, finding.file) == (Code.NOT_CANONICAL, first_part(dataset).path)


def test_needless_bytes_in_other_records_are_found(dataset: Path, tmp_path: Path) -> None:
    request = TakedownRequest(ids=("image-1",))
    tombstone = Tombstone(request=request, reason="asked", when="2026-11-24T00:00:00Z", images=())
    note_output(location_of(dataset), "export", location_of(tmp_path / "export"), {"a.json": "0" * 64})
    (dataset / "tombstones").mkdir()
    (dataset / "tombstones" / tombstone.name).write_bytes(tombstone.to_json()[:1] + spaces() + tombstone.to_json()[1:])
    (note,) = (dataset / OUTPUTS).iterdir()
    note.write_bytes(b'{"command":"' + original().hex().encode() + b'",' + note.read_bytes()[1:])
    findings = audit_integrity(location_of(dataset), now=LATER).findings
    assert {(finding.code, finding.file) for finding in findings} == {
        (Code.BAD_TOMBSTONE, f"tombstones/{tombstone.name}"),
        (Code.NOT_CANONICAL, f"{OUTPUTS}/{note.name}"),
    }


def test_small_files_contain_what_their_names_say(dataset: Path, tmp_path: Path) -> None:
    location = location_of(dataset)
    put_version(location, "build")
    note_output(location, "export", location_of(tmp_path / "export"), {"a.json": "0" * 64})
    begin_amendment(location, 2, [0, 1])
    for paths in (("shards/sa_000000-0123456789ab.tar",), ()):
        (reserved := Reservation(0, 9, paths)).location(location).put(reserved.to_json())
    summary = {"bytes": 1, "counts": {"images": 1, "rejected:x": 2}, "files": 4, "numerics": {"0a": 1}, "shards": 1}
    (location / "summaries/000000-0123456789ab.json").put(summary_json(CommitSums(**summary)))
    leaves = ["0" * 64]
    (location / f"summaries/leaves-000000-0123456789ab-{fingerprint(leaves)}.json").put(canonical_json(leaves))
    keys = tmp_path / "key.pem"
    keys.write_bytes(Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    sign_version(location, location_of(keys))
    assert list(audit_canonical_json(location)) == []
    folders = ("outputs", "reservations", "summaries")
    files = [dataset / "id.json", *(dataset / "versions").glob("*.sig")]
    files += [file for folder in folders for file in (dataset / folder).iterdir()]
    assert len(files) == 8
    for file in files:
        data = file.read_bytes()
        for other in (data[:5] + b"x" + data[6:], b'{"x":1}\n', b"[]\n", b"1\n", original(), b" " * 2_000_000):
            file.write_bytes(other)
            (found,) = audit_canonical_json(location)
            assert (found.code, found.file) == (Code.NOT_CANONICAL, str(file.relative_to(dataset)))
        file.write_bytes(data)


def test_the_end_of_image_data_outside_of_the_sample_is_checked_on_request(dataset: Path) -> None:
    PLANTS["jpeg_short_scan_tail"](dataset)
    skipped = audit(dataset, "--sample", "0")
    assert skipped.exit_code == 0
    assert "6 JPEGs not in the sample: not checked for bytes after the last block (--all-bytes does)" in skipped.stdout
    looked = audit(dataset, "--sample", "0", "--all-bytes")
    assert looked.exit_code == 1
    assert "bytes after the last block of the image data" in looked.stdout
    assert "0 masks decoded" in looked.stdout
    assert "not in the sample" not in looked.stdout


def test_tables_of_another_pyarrow_are_checked_in_their_structure_and_this_is_told(dataset: Path) -> None:
    edit_file(dataset, "masks", by_another_pyarrow)
    edit_part(dataset, by_another_pyarrow)
    plain, strict = audit(dataset), audit(dataset, "--byte-for-byte")
    note = "2 Parquet files written by another version of pyarrow: the structure was checked, but not every byte"
    assert (plain.exit_code, strict.exit_code) == (0, 3)
    assert f"\n{note}\n" in plain.stdout
    assert f"\nnot checked: {note}\n" in strict.stdout


def test_other_bytes_of_the_same_pyarrow_are_told_and_found_on_request(dataset: Path) -> None:
    def compressed_further(data: bytes) -> bytes:
        sink = io.BytesIO()
        with pq.ParquetWriter(sink, SCHEMAS["masks"], **{**PARQUET_OPTIONS, "compression_level": 19}) as writer:
            writer.write_table(pq.read_table(io.BytesIO(data)).cast(SCHEMAS["masks"]))
        assert sink.getvalue() != data
        return sink.getvalue()

    edit_file(dataset, "masks", compressed_further)
    plain, strict = audit(dataset), audit(dataset, "--byte-for-byte")
    assert (plain.exit_code, strict.exit_code) == (0, 1)
    assert "1 Parquet file with other bytes than this pyarrow writes for the rows" in plain.stdout
    assert "not_canonical: shard 0: masks/sa_000000-" in strict.stdout


def test_a_whole_catalog_part_is_what_its_rows_produce(dataset: Path) -> None:
    part = first_part(dataset)
    check = check_catalog_part(location_of(dataset) / part.path, part.sha256)
    assert check == ParquetCheck(alike=True, by_other=False)
