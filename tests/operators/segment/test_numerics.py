"""Numerics: equal ones agree, and differences are listed."""

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from segmint.infra import device as infra_device
from segmint.infra import version as infra_version
from segmint.infra.assets import sha256_of
from segmint.infra.device import Compute, Precision, cpu_bits
from segmint.infra.errors import UsageError
from segmint.model.automatic.device_crops import KernelError, decode_chunk, plan_image
from segmint.model.device import CaptureError, capture_lock
from segmint.model.kernels.cpu import library
from segmint.model.sam.load import CompilationError
from segmint.model.sam.predictor import Predictor
from segmint.operators.segment import numerics, segment
from segmint.operators.segment.mask_config import MasksConfig, ModelConfig
from segmint.operators.segment.models import load_model
from segmint.operators.segment.numerics import MixedNumericsError, Numerics, observe_numerics, resolve_numerics
from segmint.operators.segment.segment import Segment, SegmentSettings, check_numerics, load_generator
from tests.support.cpu_kernels import every_set

GPU = SimpleNamespace(name="NVIDIA H100 80GB HBM3", major=9, minor=0, multi_processor_count=132)


def lacking(package: str) -> Callable[[str], str]:
    def found(name: str) -> str:
        if name == package:
            raise PackageNotFoundError(name)
        return version(name)

    return found


@pytest.fixture(scope="module")
def here(mobile_sam_path: Path) -> Numerics:
    return observe_numerics(Compute("cpu", "fp32", 1), 4, 1, sha256_of(mobile_sam_path))


def test_numerics_name_this_machine_and_these_weights(here: Numerics) -> None:
    assert here.torch == torch.__version__
    assert {type(value) for value in here.to_dict().values()} == {str, int}  # workers unpickle them without torch
    assert here.device_kind == torch.backends.cpu.get_cpu_capability()
    assert here.weights_sha256.startswith("6dbb9052")


def test_every_field_is_in_the_fingerprint(here: Numerics) -> None:
    fingerprints = {here.fingerprint}
    for name, value in here.to_dict().items():
        other = replace(here, **{name: f"{value}x" if isinstance(value, str) else value + 1})
        fingerprints.add(other.fingerprint)
        assert here.differences(other).startswith(name)
    assert len(fingerprints) == len(here.to_dict()) + 1
    assert here.differences(replace(here)) == ""


def test_a_package_that_is_not_installed_is_none(
    here: Numerics, mobile_sam_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert here.facenet_pytorch == version("facenet-pytorch")
    monkeypatch.setattr(infra_version, "version", lacking("facenet-pytorch"))
    without = observe_numerics(Compute("cpu", "fp32", 1), 4, 1, sha256_of(mobile_sam_path))
    assert without.facenet_pytorch == "none"
    assert without.differences(here) == f"facenet_pytorch 'none' instead of '{here.facenet_pytorch}'"


def test_other_fields_are_refused_by_name(here: Numerics) -> None:
    with pytest.raises(UsageError, match="numerics include clock, which segmint"):
        Numerics.recorded({**here.to_dict(), "clock": "fast"})
    for lacking in (("device", "littlecms"), ("cpu", "kernels")):
        with pytest.raises(UsageError, match=f"lack {', '.join(lacking)}$"):
            Numerics.recorded({key: value for key, value in here.to_dict().items() if key not in lacking})


def test_a_missing_field_that_was_added_later_means_the_only_value_before(
    here: Numerics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numerics without `kernels`, as before the field was added, mean torch's kernels and keep their fingerprint."""
    monkeypatch.setattr(numerics, "ADDED", {"kernels": "torch"})
    stored = {key: value for key, value in here.to_dict().items() if key != "kernels"}
    before = Numerics.recorded(stored)
    assert (before.kernels, before.to_dict()) == ("torch", stored)
    assert here.differences(before) == ""
    assert replace(here, kernels="other").differences(before) == "kernels 'other' instead of 'torch'"
    assert before.fingerprint != here.fingerprint
    gpu = {**stored, **dict.fromkeys(numerics.GPU_ONLY, "x"), "device": "cuda"}
    assert Numerics.recorded({key: value for key, value in gpu.items() if key != "cpu"}).kernels == ""


@pytest.mark.parametrize(
    ("device", "masks", "expected"),
    [
        ("cpu", MasksConfig(), (8, 1)),
        ("cpu", MasksConfig(points_per_chunk=3), (3, 1)),
        ("cuda", MasksConfig(), (256, 7)),
        ("cuda", MasksConfig(crop_n_layers=0, points_per_chunk=16), (16, 1)),
    ],
)
def test_auto_values_suit_the_device(
    device: str, masks: MasksConfig, expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: GPU)
    found = resolve_numerics(Compute(device, "fp32", 1), ModelConfig(), masks, "0" * 64)
    assert (found.points_per_chunk, found.crops_per_batch) == expected


@pytest.mark.parametrize(
    ("device", "triton", "wanted", "expected"),
    [
        ("cpu", True, "auto", "eager"),
        ("cpu", True, "compiled", "compiled"),
        ("cuda", True, "auto", "compiled"),
        ("cuda", True, "eager", "eager"),
        ("cuda", False, "auto", "eager"),
    ],
)
def test_the_encoder_is_compiled_on_request_and_by_default_on_a_gpu(
    device: str, triton: bool, wanted: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: GPU)
    knobs = SimpleNamespace(language=SimpleNamespace(default_fp_fusion=True))
    found = SimpleNamespace(__version__="3.9", knobs=knobs) if triton else None
    monkeypatch.setattr(numerics, "find_spec", lambda _: found)
    monkeypatch.setattr(numerics, "import_module", lambda _: found)
    model = ModelConfig.model_validate({"encoder": wanted})
    assert resolve_numerics(Compute(device, "fp32", 1), model, MasksConfig(), "0" * 64).encoder == expected


def test_several_images_per_batch_need_a_gpu_and_full_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: GPU)
    model, full = ModelConfig(images_per_batch=8), MasksConfig(crop_n_layers=0)
    assert resolve_numerics(Compute("cuda", "fp32", 1), model, full, "0" * 64).crops_per_batch == 8
    for device, masks in (("cpu", full), ("cuda", MasksConfig())):
        with pytest.raises(UsageError, match=r"images_per_batch is 8, which needs a GPU and masks\.crop_n_layers: 0"):
            resolve_numerics(Compute(device, "fp32", 1), model, masks, "0" * 64)


def test_fp_fusion_that_is_switched_off_belongs_to_the_numerics(monkeypatch: pytest.MonkeyPatch) -> None:
    triton = pytest.importorskip("triton")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: GPU)
    found = []
    for value in ("1", "0"):
        monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", value)
        found.append(observe_numerics(Compute("cuda", "bf16", 1), 64, 7, "0" * 64, "compiled"))
    assert [one.triton for one in found] == [triton.__version__, f"{triton.__version__} without FP fusion"]
    assert found[0].differences(found[1]).startswith("triton")


@pytest.mark.parametrize(("precision", "attention"), [("bf16", "triton"), ("fp32", "efficient")])
def test_a_gpu_is_recorded_with_the_libraries_of_its_kernels(
    precision: Precision, attention: str, here: Numerics, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: GPU)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 92600)
    found = observe_numerics(Compute("cuda", precision, 1), 64, 7, "0" * 64, "compiled")
    stored = found.to_dict()
    assert stored.keys() - here.to_dict().keys() == {"cuda", "cudnn", "triton", "attention", "chunks"}
    assert here.to_dict().keys() - stored.keys() == {"cpu", "kernels"}
    assert stored["device_kind"] == "H100 80GB HBM3, compute capability 9.0, 132 multiprocessors"
    assert (stored["attention"], stored["triton"], stored["cudnn"]) == (attention, version("triton"), "92600")
    assert Numerics.recorded(stored) == found
    for name in ("cuda", "cudnn", "triton", "attention", "chunks"):
        assert found.differences(replace(found, **{name: "x"})).startswith(f"{name} ")


def test_a_cpu_has_no_fields_of_a_gpu(here: Numerics) -> None:
    assert Numerics.recorded(here.to_dict()) == here
    assert here.kernels == "torch"
    assert not here.to_dict().keys() & {"cuda", "cudnn", "triton", "attention", "chunks"}


@pytest.fixture
def no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a machine where nothing was compiled."""
    monkeypatch.setattr(library, "FOLDER", tmp_path)
    library.kernels_or_reason.cache_clear()
    yield
    library.kernels_or_reason.cache_clear()


def kernels_of(wanted: str) -> str:
    model = ModelConfig.model_validate({"kernels": wanted})
    return resolve_numerics(Compute("cpu", "fp32", 1), model, MasksConfig(), "0" * 64).kernels


def test_auto_takes_the_kernels_that_are_there_and_torch_on_request() -> None:
    every_set()  # skips without a library
    assert [kernels_of(wanted) for wanted in ("auto", "lanes16-1", "torch")] == ["lanes16-1", "lanes16-1", "torch"]


@pytest.mark.usefixtures("no_library")
def test_without_the_library_auto_is_torch_and_the_kernels_are_refused() -> None:
    assert kernels_of("auto") == "torch"
    with pytest.raises(UsageError, match=r"model\.kernels is lanes16-1, but .*isn't there.*model\.kernels: torch"):
        kernels_of("lanes16-1")


def test_the_mode_of_mkl_is_set_and_recorded(
    here: Numerics, mobile_sam_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(infra_device, "cpu_facts", lambda: {"vendor_id": "GenuineIntel"})
    monkeypatch.setattr(numerics, "cpu_bits", cpu_bits.__wrapped__)
    monkeypatch.setenv("MKL_CBWR", "")
    resolved = resolve_numerics(here.compute, ModelConfig(kernels="torch"), MasksConfig(), here.weights_sha256)
    assert ", MKL_CBWR=AUTO,STRICT, " in resolved.cpu
    settings = SegmentSettings(MasksConfig().settings(4), str(mobile_sam_path), resolved)
    monkeypatch.setenv("MKL_CBWR", "")
    check_numerics(settings)
    without = replace(resolved, cpu=resolved.cpu.replace("MKL_CBWR=AUTO,STRICT, ", ""))
    with pytest.raises(MixedNumericsError, match="MKL_CBWR=AUTO,STRICT"):
        check_numerics(replace(settings, numerics=without))


@pytest.mark.usefixtures("no_library")
def test_a_worker_without_the_library_is_refused_and_told_why(here: Numerics, mobile_sam_path: Path) -> None:
    begun = replace(here, kernels="lanes16-1")
    settings = SegmentSettings(MasksConfig().settings(4), str(mobile_sam_path), begun)
    with pytest.raises(MixedNumericsError, match=r"kernels 'torch' instead of 'lanes16-1' \(.*isn't there"):
        check_numerics(settings)
    check_numerics(replace(settings, numerics=here))


def test_the_recorded_kernels_are_those_that_compute(here: Numerics, mobile_sam_path: Path) -> None:
    every_set()
    for name in ("lanes16-1", "torch"):
        recorded = replace(here, kernels=name)
        predictor = load_generator(SegmentSettings(MasksConfig().settings(4), str(mobile_sam_path), recorded)).predictor
        assert (predictor.kernels is None) == (name == "torch")
        assert predictor.sam.dtype == torch.float32


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (KernelError("this GPU would generate wrong masks"), "this GPU would generate wrong masks"),
        (CaptureError("couldn't capture a graph"), "in CUDA graphs, but segmint couldn't capture a graph."),
        (CompilationError("can't compile it"), "model.encoder compiled, but can't compile it here."),
    ],
)
def test_a_worker_that_fails_while_it_warms_up_says_what_to_fix(
    error: Exception, expected: str, here: Numerics, mobile_sam_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Predictor, "embed_many", fail)
    monkeypatch.setattr(segment, "first_alone", lambda *_: nullcontext())
    compiled = replace(here, encoder="compiled")
    settings = SegmentSettings(MasksConfig().settings(4), str(mobile_sam_path), compiled, allow_mixed_numerics=True)
    with pytest.raises(UsageError, match=re.escape(expected)):
        load_generator(settings)


def test_a_decoder_in_fp16_is_recorded_by_itself(here: Numerics, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numerics, "device_kind", lambda _: "NVIDIA H200")
    on_gpu = Compute("cuda", "bf16", 1)
    same = resolve_numerics(on_gpu, ModelConfig(), MasksConfig(), "0" * 64)
    own = resolve_numerics(on_gpu, ModelConfig(decoder_precision="fp16"), MasksConfig(), "0" * 64)

    assert "decoder_precision" not in same.to_dict()
    assert own.to_dict() == {**same.to_dict(), "decoder_precision": "fp16"}
    assert own.fingerprint != same.fingerprint
    assert Numerics.recorded(own.to_dict()) == own
    assert Numerics.recorded(same.to_dict()).decoder_precision == ""
    with pytest.raises(UsageError, match=r"decoder_precision is fp16, which needs a GPU and .* the precision is fp32"):
        resolve_numerics(here.compute, ModelConfig(decoder_precision="fp16"), MasksConfig(), "0" * 64)


@pytest.mark.long
@torch.inference_mode()
def test_fp16_rounds_the_decoder_less_than_bf16(mobile_sam_path: Path, coffee: np.ndarray) -> None:
    """On the formulas that a GPU's kernels compute. MobileSAM's encoder stays in fp32."""
    points = torch.tensor([[300.0, 200.0, 1.0]], dtype=torch.float64)
    features = Predictor(load_model(mobile_sam_path, Compute("cpu", "fp32", 1))).embed(coffee).features
    found = {}
    for name, precision, decoder in (("fp32", "fp32", ""), ("bf16", "bf16", ""), ("fp16", "bf16", "fp16")):
        sam = load_model(mobile_sam_path, Compute("cpu", precision, 1), decoder)
        assert next(sam.image_encoder.parameters()).dtype == torch.float32
        decoded = decode_chunk(sam, plan_image(sam, features.to(sam.dtype)), points, 0.0)
        found[name] = decoded.drawing.draw(torch.ones_like(decoded.wanted)), decoded.predicted_iou

    logits, ious = found["fp32"]
    errors = {name: float((found[name][0] - logits).norm() / logits.norm()) for name in ("bf16", "fp16")}
    assert errors["fp16"] < errors["bf16"] / 4
    assert float((found["fp16"][1] - ious).abs().max()) < float((found["bf16"][1] - ious).abs().max())


class GpuActor(Segment):
    """A segment actor without a model."""

    def __init__(self) -> None:
        self._device = "cuda"

    def fail(self) -> None:
        """Have a row fail in a thread that doesn't own the device."""
        entry: Any = None
        self._end_if_unfit(0, entry, RuntimeError("a bad row"), owns_device=False)


def test_no_thread_asks_for_a_gpus_faults_during_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    """The question synchronizes the device, which would invalidate the capture."""
    asked: list[str] = []
    monkeypatch.setattr(segment, "device_failure", lambda device: asked.append(device))
    asking = threading.Thread(target=GpuActor().fail)
    with capture_lock:
        asking.start()
        asking.join(0.1)
        assert asked == []
    asking.join()
    assert asked == ["cuda"]


def test_a_chunk_that_a_gpu_cannot_take_is_refused_before_the_start() -> None:
    with pytest.raises(
        UsageError, match=r"masks\.points_per_chunk is 1024: expected an integer from 1 to 1023 on a GPU"
    ):
        resolve_numerics(Compute("cuda", "fp32", 1), ModelConfig(), MasksConfig(points_per_chunk=1024), "0" * 64)
