"""Quantized .pte files: what the runtime computes is what the quantized graph computes."""

from pathlib import Path

import pytest
import torch
from deploy_models import EXAMPLE, images, loader, small
from torch import Tensor, nn
from torch.export import Dim
from torchmetrics.classification import MulticlassAccuracy

from lightning_prune.deploy import XNNPACK, Artifact, RuntimeModel, export, load_manifest
from lightning_prune.deploy.quantization import Int4Groupwise, Int8, Int8Dynamic, Quantization
from lightning_prune.deploy.quantization.noise import sqnr_db
from lightning_prune.errors import VerificationError


class Wide(nn.Module):
    """Linear layers wide enough for the size of the file to show what its weights take."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 64))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def test_one_call_quantizes_verifies_and_records(tmp_path: Path) -> None:
    artifact = export(
        small(),
        tmp_path / "small.pte",
        example_inputs=EXAMPLE,
        backend=XNNPACK(quantization=Int8(loader(64), skip=("head",))),
        verify_on=loader(),
        metric=MulticlassAccuracy(3, average="micro"),
    )
    assert "in float: head" in str(artifact)
    manifest = load_manifest(artifact.path)
    assert manifest["backend"]["options"]["quantization"].startswith("Int8(calibration=<DataLoader of 11 batches>")
    assert manifest["quantization"]["methods"]["forward"]["kept_float"] == ["head"]
    got = RuntimeModel(artifact.path)(images(4))[0]
    assert sqnr_db(small().eval()(images(4)).detach(), got) > 15


@pytest.mark.slow
@pytest.mark.parametrize(
    ("way", "share", "ratio"),
    [(Int8([torch.randn(64, 256)]), 0.30, 25), (Int8Dynamic(), 0.30, 35), (Int4Groupwise(), 0.20, 15)],
    ids=str,
)
def test_files_shrink_and_stay_accurate(tmp_path: Path, way: Quantization, share: float, ratio: float) -> None:
    torch.manual_seed(0)
    model, x = Wide().eval(), torch.randn(8, 256)

    def exported(name: str, backend: XNNPACK) -> Artifact:
        return export(model, tmp_path / name, example_inputs=x, backend=backend)

    dense, small_one = exported("dense.pte", XNNPACK()), exported("small.pte", XNNPACK(quantization=way))
    assert small_one.size_bytes < share * dense.size_bytes
    y = torch.randn(8, 256)
    assert sqnr_db(model(y).detach(), RuntimeModel(small_one.path)(y)[0]) > ratio
    assert not [note for note in small_one.notes if "stay outside" in note]


@pytest.mark.slow
@pytest.mark.parametrize("way", [Int8([images(16)]), Int8Dynamic()], ids=str)
def test_a_quantized_file_takes_any_batch_in_its_range(tmp_path: Path, way: Quantization) -> None:
    path = tmp_path / "small.pte"
    backend = XNNPACK(quantization=way)
    sizes = ({0: Dim("batch", min=1, max=16)},)
    export(small(), path, example_inputs=EXAMPLE, backend=backend, dynamic_shapes=sizes)
    program = RuntimeModel(path)
    for count in (1, 5, 16):
        x = images(count)
        assert sqnr_db(small().eval()(x).detach(), program(x)[0]) > 15


@pytest.mark.slow
def test_samples_unlike_the_calibration_are_refused_with_their_ratio(tmp_path: Path) -> None:
    backend = XNNPACK(quantization=Int8([images(16) / 100]))
    far = [(images(8) * 10, torch.zeros(8))]
    with pytest.raises(VerificationError, match="dB"):
        export(small(), tmp_path / "small.pte", example_inputs=EXAMPLE, backend=backend, verify_on=far)
    assert not list(tmp_path.iterdir())
