"""What a folder of evidence says of an audit, where it may be, and how to check it with standard tools."""

import hashlib
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from segmint.catalogs.dataset.versions import VersionName, name_now
from segmint.infra.errors import UsageError
from segmint.pipeline.quality.audit.result import AssertedLicense, read_audit
from segmint.pipeline.quality.evidence import check_target, render_evidence, write_evidence
from segmint.pipeline.quality.signatures import (
    key_id,
    read_public_key,
    sign_version,
    signature_file,
    signed_bytes,
    signed_line,
)
from tests.support.html import parse_page
from tests.support.locations import location_of
from tests.support.reported import QUICK

FILES = {"evidence.json", "audit.json", "manifest.json", "files.sha256", "study.json", "index.html"}
PAGE = Path(__file__).parents[3] / "docs/versions.md"


def test_it_says_what_was_audited_and_by_what(evidence_folder: Path) -> None:
    dataset = location_of(evidence_folder.parent / "dataset")
    assert {path.name for path in evidence_folder.iterdir()} == {*FILES, "versions", "SHA256SUMS"}
    value = json.loads((evidence_folder / "evidence.json").read_text())
    assert (value["dataset"]["digest"], value["dataset"]["version"]) == (name_now(dataset).digest, 1)
    assert value["unsearched"][0]["reason"] == "skipped"
    assert (value["not_checked"], value["unfinished"]) == ([], [])
    assert set(value["detector_files"]["mtcnn"]) == {"onet.pt", "pnet.pt", "rnet.pt"}
    assert set(value["detector_files"]["clp"]) == {"clp_det.onnx"}
    assert {"torch", "segmint", "python"} <= value["software"].keys()
    audit = read_audit(location_of(evidence_folder / "audit.json"))
    assert audit.version == VersionName(name_now(dataset).digest, 1)
    assert str(evidence_folder.parent) not in "".join(path.read_text() for path in evidence_folder.glob("*.json"))


def test_the_page_says_it_to_people(evidence_folder: Path) -> None:
    page = parse_page((evidence_folder / "index.html").read_text())
    verdict = "no image was searched for faces and plates (6 of 6 images (--privacy-sample 0)); 0 findings otherwise"
    assert verdict in page.text
    assert "6 of 6 images: skipped" in page.text
    assert (
        "The pixels of 2 of 6 JPEGs and 4 of 19 masks: only hashes, sizes, metadata, and run lengths were checked"
        in page.text
    )
    assert "Whether the recorded licenses are true, and whether they allow commercial use" in page.text
    assert "Every image was searched" not in page.text
    assert "The owners of the keys above signed this line with ssh-keygen" in page.text
    assert "boxes" not in page.text
    assert "face 1 1 59%" in page.text
    assert not page.all("script")


def test_without_a_signature_nobody_is_said_to_have_signed(evidence_folder: Path) -> None:
    value = json.loads((evidence_folder / "evidence.json").read_text())
    value["signatures"] = []
    value["checked"] |= {"jpegs_decoded": value["checked"]["jpegs"], "masks_decoded": value["checked"]["masks"]}
    audit = read_audit(location_of(evidence_folder / "audit.json"))
    page = parse_page(render_evidence(value, audit, None, "0" * 64, [])).text
    assert "No valid signature covers this state of the dataset." in page
    assert "signed this line" not in page
    assert "The signature covers" not in page
    assert "The pixels of" not in page


def test_only_an_empty_folder_outside_of_the_dataset_is_taken(evidence_folder: Path, tmp_path: Path) -> None:
    dataset = location_of(evidence_folder.parent / "dataset")
    with pytest.raises(UsageError, match="already contains files"):
        check_target(dataset, location_of(evidence_folder))
    for inside in (dataset / "evidence", dataset / "report/evidence"):
        with pytest.raises(UsageError, match="is inside the dataset"):
            check_target(dataset, inside)
    with pytest.raises(UsageError, match="is not a segmint dataset"):
        check_target(location_of(tmp_path), location_of(tmp_path / "evidence"))
    check_target(dataset, location_of(tmp_path / "evidence"))
    (location_of(tmp_path) / "evidence/versions/1.sig").put(b"of another run")
    with pytest.raises(UsageError, match="already contains files"):
        check_target(dataset, location_of(tmp_path / "evidence"))


def test_a_dataset_that_changed_meanwhile_has_no_evidence(evidence_folder: Path, tmp_path: Path) -> None:
    dataset = location_of(evidence_folder.parent / "dataset")
    report = read_audit(location_of(evidence_folder / "audit.json"))
    before = replace(report, version=VersionName("0" * 64, 1))
    with pytest.raises(UsageError, match="changed during the audit"):
        write_evidence(dataset, before, QUICK, location_of(tmp_path / "evidence"))
    assert not (tmp_path / "evidence").exists()


def test_of_two_runs_into_one_folder_the_second_writes_nothing(evidence_folder: Path, tmp_path: Path) -> None:
    dataset = location_of(evidence_folder.parent / "dataset")
    report = read_audit(location_of(evidence_folder / "audit.json"))
    (tmp_path / "evidence.json").write_text("{}")
    with pytest.raises(UsageError, match=r"another run wrote evidence\.json\. Pass an empty folder"):
        write_evidence(dataset, report, QUICK, location_of(tmp_path))
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("evidence.json", "{}")]


def test_only_valid_signatures_of_the_digest_are_listed(evidence_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(evidence_folder.parent / "dataset", tmp_path / "dataset")
    dataset, folder = location_of(tmp_path / "dataset"), location_of(tmp_path / "evidence")
    (signed,) = (path.name for path in (tmp_path / "dataset/versions").glob("1.*.sig"))
    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes_raw()
    copied, garbage = key_id(public), "0" * 16
    (dataset / f"versions/1.{copied}.sig").put(signature_file(public, key.sign(signed_bytes(signed_line("0" * 64)))))
    (dataset / f"versions/1.{garbage}.sig").put(b"garbage")
    write_evidence(dataset, read_audit(location_of(evidence_folder / "audit.json")), QUICK, folder)
    value = json.loads((folder / "evidence.json").read())
    assert [each["file"] for each in value["signatures"]] == [f"versions/{signed}"]
    page = parse_page((folder / "index.html").read().decode())
    invalid = ", ".join(sorted([copied, garbage]))
    assert f"Signed by the keys {signed[2:18]}; invalid signature files of the keys {invalid}" in page.text


def test_evidence_says_that_a_signature_by_segmint_0_3_0_covers_the_digest_only(
    evidence_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(evidence_folder.parent / "dataset", tmp_path / "dataset")
    dataset, folder = location_of(tmp_path / "dataset"), location_of(tmp_path / "evidence")
    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes_raw()
    signature = key.sign(signed_bytes(signed_line(name_now(dataset).digest)))
    (dataset / f"versions/1.{key_id(public)}.sig").put(signature_file(public, signature))
    write_evidence(dataset, read_audit(location_of(evidence_folder / "audit.json")), QUICK, folder)
    value = json.loads((folder / "evidence.json").read())
    assert {each["key_id"]: each["covers_files"] for each in value["signatures"]} == {
        key_id(public): False,
        key_id(read_public_key(location_of(evidence_folder.parent / "key.public.pem"))): True,
    }
    assert (
        f"{key_id(public)} (digest only, not the list of files)"
        in parse_page((folder / "index.html").read().decode()).text
    )


def test_evidence_says_who_asserted_which_license(evidence_folder: Path, tmp_path: Path) -> None:
    assert json.loads((evidence_folder / "evidence.json").read_text())["licenses_asserted"] == []
    report = read_audit(location_of(evidence_folder / "audit.json"))
    assert report.licenses is not None
    asserted = (
        AssertedLicense("CC-BY-4.0", "Jo & Ann, 2026-05-01", 4),
        AssertedLicense("CC0-1.0", "Li, 2026-06-01", 1),
    )
    report = replace(report, licenses=replace(report.licenses, asserted=asserted))
    folder = location_of(tmp_path / "evidence")
    write_evidence(location_of(evidence_folder.parent / "dataset"), report, QUICK, folder)
    assert json.loads((folder / "evidence.json").read())["licenses_asserted"] == [
        {"license": "CC-BY-4.0", "asserted_by": "Jo & Ann, 2026-05-01", "images": 4},
        {"license": "CC0-1.0", "asserted_by": "Li, 2026-06-01", "images": 1},
    ]
    text = parse_page((folder / "index.html").read().decode()).text
    assert "CC-BY-4.0 Jo & Ann, 2026-05-01 4 CC0-1.0 Li, 2026-06-01 1" in text
    assert read_audit(folder / "audit.json").licenses == report.licenses


def test_the_list_names_every_committed_file(evidence_folder: Path) -> None:
    dataset = evidence_folder.parent / "dataset"
    lines = (evidence_folder / "files.sha256").read_text().splitlines()
    listed = dict(reversed(line.split("  ")) for line in lines)
    assert len(listed) == len(lines)
    assert listed == {path: hashlib.sha256((dataset / path).read_bytes()).hexdigest() for path in listed}
    folders = {"catalog", "commits", "shards", "images", "masks", "rejects"}
    data = (path.relative_to(dataset).as_posix() for path in dataset.rglob("*") if path.is_file())
    assert listed.keys() == {path for path in data if path == "dataset.json" or path.partition("/")[0] in folders}


@pytest.fixture
def handed_over(evidence_folder: Path, tmp_path: Path) -> Path:
    """Evidence, its dataset, and its owner's key, where the commands on the page expect them."""
    shutil.copytree(
        evidence_folder.parent / "dataset", tmp_path / "demo/dataset", ignore=shutil.ignore_patterns("*.sig")
    )
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "owner"], check=True)
    dataset = location_of(tmp_path / "demo/dataset")
    sign_version(dataset, location_of(tmp_path / "owner"))
    report = read_audit(location_of(evidence_folder / "audit.json"))
    write_evidence(dataset, report, QUICK, location_of(tmp_path / "evidence"))
    return tmp_path


def commands(section: str) -> str:
    """Return the commands of a section of the page."""
    text = PAGE.read_text().partition(f"### {section}\n")[2]
    return "".join(re.findall(r"```\n(.*?)```", re.split(r"^##", text, maxsplit=1, flags=re.MULTILINE)[0], re.DOTALL))


def shell(folder: Path, script: str) -> subprocess.CompletedProcess[str]:
    """Run commands in `folder`, and stop at the first one that fails."""
    return subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", script], cwd=folder, capture_output=True, text=True, check=False
    )


def flip(file: Path, position: int) -> None:
    """Change one bit of a file."""
    data = bytearray(file.read_bytes())
    data[position] ^= 1
    file.write_bytes(data)


def sum_again(folder: Path) -> None:
    """Write SHA256SUMS again, as somebody who hides a change does."""
    script = "find . -type f ! -name 'SHA256SUMS*' -printf '%P\\n' | LC_ALL=C sort | xargs sha256sum > SHA256SUMS"
    assert shell(folder, script).returncode == 0


def test_the_commands_on_the_page_connect_the_signature_with_every_byte(handed_over: Path) -> None:
    script = commands("Check evidence")
    done = shell(handed_over, script)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith('Good "segmint-dataset" signature for owner with ED25519 key')

    tar = min((handed_over / "demo/dataset/shards").iterdir())
    flip(tar, tar.stat().st_size // 2)
    done = shell(handed_over, script)
    assert (done.returncode, f"shards/{tar.name}: FAILED" in done.stdout) == (1, True)

    listed = handed_over / "evidence/files.sha256"
    changed = hashlib.sha256(tar.read_bytes()).hexdigest()
    listed.write_text(re.sub(rf"\w+(?=  shards/{tar.name})", changed, listed.read_text()))
    done = shell(handed_over, script)
    assert (done.returncode, "files.sha256: FAILED" in done.stdout) == (1, True)
    sum_again(handed_over / "evidence")
    done = shell(handed_over, script)
    assert (done.returncode, "Signature verification failed" in done.stdout + done.stderr) == (255, True)


def test_a_line_that_is_missing_in_the_list_breaks_the_signature(handed_over: Path) -> None:
    listed = handed_over / "evidence/files.sha256"
    listed.write_text("".join(listed.read_text().splitlines(keepends=True)[:-1]))
    sum_again(handed_over / "evidence")
    assert shell(handed_over, commands("Check evidence")).returncode == 255


def test_the_commands_on_the_page_vouch_for_an_audit(handed_over: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", handed_over / "auditor"], check=True)
    sign, check = re.split(r"(?=^echo )", commands("Vouch for an audit"), maxsplit=1, flags=re.MULTILINE)
    assert shell(handed_over, sign).returncode == 0
    done = shell(handed_over, check + commands("Check evidence"))
    assert (done.returncode, done.stderr) == (0, "")
    flip(handed_over / "evidence/audit.json", 100)
    sum_again(handed_over / "evidence")
    assert shell(handed_over, check).returncode == 255
