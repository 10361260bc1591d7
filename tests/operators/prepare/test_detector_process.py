"""The process that holds the detectors of a node: here on a CPU, with the same code as on a GPU."""

import contextlib
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import psutil
import pyarrow as pa
import pytest
import torch
from PIL import Image

from segmint.catalogs.findings import Reason, RejectedError
from segmint.catalogs.licenses import LicensePolicy
from segmint.catalogs.parquet import NORMALIZED
from segmint.infra.errors import UsageError
from segmint.infra.storage.storage import Storage
from segmint.model.detectors.detection import CandidateDetector, Detection, iou, lenient
from segmint.operators.prepare import detector_process
from segmint.operators.prepare.deidentify import (
    DeidentifyConfig,
    FacesConfig,
    PlatesConfig,
    build_detectors,
)
from segmint.operators.prepare.detector_process import (
    DetectorProcess,
    DetectorSettings,
    DetectorsGoneError,
    detector_numerics,
    remote_detectors,
)
from segmint.operators.prepare.detector_socket import (
    DetectorProcessError,
    RemoteDetector,
    connected,
    sealed_memory,
)
from segmint.operators.prepare.ingest import IngestConfig
from segmint.operators.prepare.prepare import Prepare, PrepareConfig
from segmint.operators.prepare.release import ReleaseConfig
from tests.support.redacted import redacted
from tests.support.torchscript import saved

pytestmark = pytest.mark.usefixtures("one_thread")

BOTH = DeidentifyConfig()
GRAY = np.full((40, 50, 3), 90, np.uint8)
PIXELS = 10**6


class Trouble(torch.nn.Module):
    """Finds nothing, fails on an image that begins with red, and never ends its first search of a green one.

    It counts searches of green images in the file `searches`, one byte that outlives this process.
    """

    def __init__(self, searches: str) -> None:
        super().__init__()
        self.searches = searches

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        green, red = int(image[1, 0, 0]), int(image[2, 0, 0])
        if red > 200 and green < 50:
            raise RuntimeError("a red corner")
        if green > 200 and red < 50:
            begun = torch.from_file(self.searches, True, 1, dtype=torch.uint8)
            begun += 1
            while int(begun[0]) == 1:
                pass
        return torch.zeros((0, 4)), torch.zeros(0), torch.zeros(0), torch.zeros(2)


def corner(*color: int) -> np.ndarray:
    image = np.full((64, 64, 3), 90, np.uint8)
    image[:16, :16] = color
    return image


GREEN, RED = corner(0, 255, 0), corner(255, 0, 0)


@pytest.fixture(scope="module")
def bundled(processes: None) -> Iterator[DetectorProcess]:
    settings = DetectorSettings(BOTH, PIXELS, Storage())
    process = DetectorProcess(settings)
    process.ready()
    yield process
    process.close()


@pytest.fixture(scope="module")
def searches_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("searches") / "begun"


@pytest.fixture
def searches(searches_file: Path) -> Callable[[], int]:
    """The number of searches of green images that have begun in this test."""
    searches_file.write_bytes(b"\0")
    return lambda: searches_file.read_bytes()[0]


@pytest.fixture(scope="module")
def troubled(searches_file: Path, tmp_path_factory: pytest.TempPathFactory) -> DeidentifyConfig:
    path = saved(Trouble(str(searches_file)), tmp_path_factory.mktemp("detector") / "trouble.ts")
    return DeidentifyConfig(faces=FacesConfig(detector=str(path)), plates=PlatesConfig(detector="none"))


@pytest.fixture(scope="module")
def trouble(processes: None, troubled: DeidentifyConfig) -> Iterator[DetectorProcess]:
    process = DetectorProcess(DetectorSettings(troubled, PIXELS, Storage(), search_s=600))
    process.ready()
    yield process
    process.close()


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def table(image: Path) -> pa.Table:
    row = {"ordinal": 0, "id": 1, "image_id": "0", "license": "CC0-1.0", "uri": str(image)}
    return pa.Table.from_pylist([{**dict.fromkeys(NORMALIZED.names), **row}], schema=NORMALIZED)


def pid(process: DetectorProcess) -> int:
    """The id of the most recently started process."""
    started = process.process
    assert started is not None
    assert started.pid is not None
    return started.pid


def memories(pid: int) -> int:
    """The images that a process shares with a child, if this user may know."""
    found = 0
    with contextlib.suppress(PermissionError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                found += "segmint-pixels" in os.readlink(link)
    return found


def named_memory() -> set[str]:
    """The shared memory of Python's, torch's and our names."""
    return {name for name in os.listdir("/dev/shm") if name.startswith(("psm_", "torch_", "segmint"))}


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_it_finds_what_detectors_in_the_child_find(photos: Path, bundled: DetectorProcess) -> None:
    faces = cv2.resize(read(photos / "multiface.jpg"), None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    plate = read(photos / "plate_car_1.png")
    there, here = remote_detectors(BOTH, bundled.address), build_detectors(BOTH, threads=1)
    for image, kind in ((faces, "face"), (plate, "plate")):
        clean, regions = redacted(image, there)
        expected, expected_regions = redacted(image, here)
        assert regions == expected_regions
        assert kind in {region.kind for region in regions}
        assert (clean == expected).all()


def test_it_counts_from_a_lower_score_on_request(photos: Path, bundled: DetectorProcess) -> None:
    image = cv2.resize(read(photos / "plate_car_1.png"), None, fx=0.3, fy=0.3, interpolation=cv2.INTER_AREA)
    there, here = remote_detectors(BOTH, bundled.address), build_detectors(BOTH, threads=1)
    found = [lenient(each, 0.02).detect(image) for each in (there[1], here[1])]
    assert found[0] == found[1]
    assert len(found[0]) > len(here[1].detect(image)) == len(there[1].detect(image))


def test_it_searches_views_of_candidates(photos: Path, bundled: DetectorProcess) -> None:
    there, here = remote_detectors(BOTH, bundled.address), build_detectors(BOTH, threads=1)
    for name, index in (("multiface.jpg", 0), ("plate_car_1.png", 1)):
        view = cv2.resize(read(photos / name), (300, 160), interpolation=cv2.INTER_AREA)
        local = here[index]
        assert isinstance(local, CandidateDetector)
        found = there[index].look(view)
        assert found == local.look(view)
        assert len(found) > 0


@pytest.mark.parametrize(("device", "searches"), [("cuda", 2), ("cpu", 1)])
def test_exhausted_gpu_memory_is_retried_once(device: str, searches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error comes from a stand-in, because only a GPU raises it."""
    calls = []

    class Short:
        def detect(self, image: np.ndarray) -> list[Detection]:
            calls.append(image)
            raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(detector_process, "copied_pixels", lambda request: GRAY)
    monkeypatch.setattr(detector_process, "lenient", lambda detector, score: detector)
    server: Any = SimpleNamespace(_device=device, _deadline=SimpleNamespace(running=contextlib.nullcontext))
    with pytest.raises(RuntimeError, match="out of memory"):
        detector_process.Server.search(server, Short(), SimpleNamespace(score=None, is_view=False))  # type: ignore[arg-type]
    assert len(calls) == searches


@pytest.mark.cuda
def test_on_a_gpu_it_finds_what_the_cpu_finds(photos: Path) -> None:
    process = DetectorProcess(
        DetectorSettings(DeidentifyConfig(device="cuda"), PIXELS * 10, Storage(), numerics=detector_numerics("cuda"))
    )
    process.ready()
    try:
        for name in ("multiface.jpg", "plate_car_1.png"):
            image = read(photos / name)
            for there, here in zip(remote_detectors(BOTH, process.address), build_detectors(BOTH), strict=True):
                found, expected = there.detect(image), here.detect(image)
                assert len(found) == len(expected)
                assert all(max(iou(each.box, one.box) for one in found) > 0.95 for each in expected)
    finally:
        process.close()


def test_several_children_are_served_at_once(bundled: DetectorProcess) -> None:
    found: list[list[Detection]] = []
    faces, _ = remote_detectors(BOTH, bundled.address)
    threads = [threading.Thread(target=lambda: found.append(faces.detect(GRAY))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[]] * 8


def _request(size: tuple[int, int] = (40, 50), kind: int = 0, magic: bytes = b"sgm1", score: float = 1.0) -> bytes:
    return struct.pack("<4sIIId?", magic, kind, *size, score, False)


@pytest.mark.parametrize(
    ("header", "says"),
    [
        (_request((41, 50)), "expected sealed memory of 6,150 bytes, got 6,000"),
        (_request((20, 50)), "expected sealed memory of 3,000 bytes, got 6,000"),
        (_request((2**32 - 1, 2**32 - 1)), "expected 1 to 1,000,000 pixels"),
        (_request((0, 50)), "expected 1 to 1,000,000 pixels, got 0 x 50"),
        (_request(kind=7), "expected a header"),
        (_request(magic=b"GET "), "expected a header"),
        (_request(score=float("nan")), "expected a score over 0 and up to 1, got nan"),
    ],
    ids=["more", "less", "huge", "none", "kind", "magic", "score"],
)
def test_a_child_that_says_wrong_sizes_is_refused_and_others_go_on(
    bundled: DetectorProcess, header: bytes, says: str
) -> None:
    with sealed_memory(GRAY) as memory:
        assert says in answer(bundled.address, header, [memory])
    assert remote_detectors(BOTH, bundled.address)[0].detect(GRAY) == []


def test_memory_that_could_change_or_keep_a_reader_waiting_is_refused(bundled: DetectorProcess) -> None:
    unsealed = os.memfd_create("unsealed")
    os.ftruncate(unsealed, GRAY.nbytes)
    ends = os.pipe()
    try:
        for handed in ([unsealed], [ends[0]], []):
            assert "expected" in answer(bundled.address, _request(), handed)
    finally:
        for end in (unsealed, *ends):
            os.close(end)
    with connected(bundled.address, 5) as connection:
        connection.sendall(b"sgm1")  # and nothing else
    assert remote_detectors(BOTH, bundled.address)[0].detect(GRAY) == []
    until(lambda: memories(pid(bundled)) == 0)


def test_a_connection_of_another_user_gets_no_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    answered: list[socket.socket] = []
    server: Any = SimpleNamespace(_answer=answered.append, _connections=SimpleNamespace(release=list))
    own = os.getuid()
    for user in (own, own + 1):
        monkeypatch.setattr(os, "getuid", lambda user=user: user)
        here, there = socket.socketpair()
        with there:
            detector_process.Server.serve(server, here)
    assert len(answered) == 1


def answer(address: str, header: bytes, handed: list[int]) -> str:
    with connected(address, 5) as connection:
        if handed:
            socket.send_fds(connection, [header], handed)
        else:
            connection.sendall(header)
        return b"".join(iter(lambda: connection.recv(4096), b"")).decode(errors="replace")


def test_an_image_that_a_detector_alone_fails_on_is_refused(
    trouble: DetectorProcess, troubled: DeidentifyConfig
) -> None:
    detectors = remote_detectors(troubled, trouble.address)
    assert redacted(GRAY, detectors)[1] == []
    with pytest.raises(RejectedError) as verdict:
        redacted(RED, detectors)
    assert verdict.value.reason == Reason.DETECTOR_FAILED
    assert verdict.value.detail.startswith("the face detector trouble.ts fails on this image, and not on others: ")
    assert verdict.value.detail.endswith("a red corner")


def test_an_image_whose_search_is_killed_is_searched_again_and_written(
    trouble: DetectorProcess, troubled: DeidentifyConfig, searches: Callable[[], int], tmp_path: Path
) -> None:
    """And no memory is left, of the process or of the child."""
    Image.fromarray(GREEN).save(tmp_path / "green.png")
    shared = named_memory()
    config = PrepareConfig(IngestConfig(), troubled, ReleaseConfig(), crops=None)
    policy = LicensePolicy(frozenset({"CC0-1.0"}), require_redistributable=False, policy_date=date(2026, 1, 1))
    first = pid(trouble)
    prepare = Prepare(config, Storage(), policy, str(tmp_path / "c.jsonl"), detectors=trouble)
    prepare.wait_until_ready()

    def kill() -> None:
        until(lambda: searches() == 1)
        os.kill(first, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        (row,) = prepare(table(tmp_path / "green.png")).to_pylist()
    finally:
        killer.join()
        prepare.close()
    assert (row["fault"], row["reason"], row["width"]) == (None, None, 64)
    assert pid(trouble) != first
    assert not psutil.pid_exists(first)
    assert searches() == 3  # of the source twice, and of the result
    assert memories(pid(trouble)) == memories(os.getpid()) == 0
    assert named_memory() <= shared


@pytest.mark.usefixtures("processes")
@pytest.mark.usefixtures("searches")
def test_a_search_over_its_deadline_ends_the_process_and_too_many_deaths_end_the_run(
    troubled: DeidentifyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detector_process, "MOST_DEATHS", 0)
    process = DetectorProcess(DetectorSettings(troubled, PIXELS, Storage(), search_s=0.2))
    detector = RemoteDetector("face", "trouble", process.address)
    try:
        with pytest.raises(DetectorProcessError, match="didn't reply"):
            detector.detect(GRAY)  # it is not started yet
        process.ready()
        os.kill(pid(process), signal.SIGTERM)  # from outside, so it doesn't count
        os.waitid(os.P_PID, pid(process), os.WEXITED | os.WNOWAIT)  # leaves the exit code to the parent
        process.ready()
        with pytest.raises(DetectorProcessError, match="didn't reply"):
            detector.detect(GREEN)
        with pytest.raises(DetectorsGoneError, match="died 1 times within 10 minutes, most recently because a search"):
            process.ready()
    finally:
        process.close()


@pytest.mark.usefixtures("processes")
def test_a_process_that_would_find_with_other_bits_does_not_start(troubled: DeidentifyConfig) -> None:
    process = DetectorProcess(DetectorSettings(troubled, PIXELS, Storage(), numerics="H200"))
    with pytest.raises(DetectorsGoneError, match=r"can't start on .*: this machine's detections would differ .*'H200'"):
        process.ready()
    process.close()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named_with_its_key() -> None:
    with pytest.raises(UsageError, match=r"deidentify\.device: device 'cuda' was requested, but torch sees no CUDA"):
        detector_numerics("cuda")
