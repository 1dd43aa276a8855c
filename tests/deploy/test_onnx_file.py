import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lightning_prune import Channel, NoRepair, OneShot, Recipe, prune
from lightning_prune.deploy import export_onnx
from lightning_prune.errors import VerificationError

has_onnx = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
needs_onnx = pytest.mark.skipif(not has_onnx, reason="needs the extra 'onnx' (onnx, onnxscript, onnxruntime)")
IMAGES = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 3)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        classes = self.fc(self.norm(self.conv(image)).relu().mean((2, 3)))
        return {"classes": classes, "scores": classes.softmax(1)}


def test_what_is_missing_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"onnx, onnxscript, onnxruntime: .* pip install 'lightning-prune\[onnx\]'"):
        export_onnx(Net(), tmp_path / "m.onnx", example_inputs=IMAGES)


@needs_onnx
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
class TestFile:
    def test_a_pruned_network_is_compared_and_smaller(self, tmp_path: Path):
        torch.manual_seed(0)
        net = Net().eval()
        whole = export_onnx(net, tmp_path / "whole.onnx", example_inputs=IMAGES)
        prune(net, replace(PRUNING, repair=NoRepair()), [IMAGES], example_inputs=IMAGES, progress=False)
        artifact = export_onnx(net, tmp_path / "half.onnx", example_inputs=IMAGES)
        assert list(artifact.outputs) == ["classes", "scores"]
        assert artifact.max_abs_error < 1e-5
        assert artifact.size_bytes < whole.size_bytes

    def test_what_differs_leaves_no_file(self, tmp_path: Path):
        with pytest.raises(VerificationError, match="largest absolute difference"):
            export_onnx(Net(), tmp_path / "m.onnx", example_inputs=IMAGES, tolerance=1e-30)
        assert list(tmp_path.iterdir()) == []

    def test_another_suffix(self, tmp_path: Path):
        with pytest.raises(ValueError, match=r"must end in \.onnx"):
            export_onnx(Net(), tmp_path / "m.pte", example_inputs=IMAGES)


PRUNING = Recipe(granularity=Channel(), schedule=OneShot(0.5))
