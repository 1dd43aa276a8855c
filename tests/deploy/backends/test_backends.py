import importlib.util
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_prune.deploy import (
    XNNPACK,
    Backend,
    CoreML,
    Int8,
    Int8Dynamic,
    Linear8,
    Palette,
    Partitioned,
    Portable,
    RuntimeModel,
    Vulkan,
    export,
)

needs_executorch = pytest.mark.skipif(
    importlib.util.find_spec("executorch") is None, reason="needs the extra 'mobile' (executorch)"
)
BACKENDS: list[Backend] = [XNNPACK(), CoreML(), Vulkan(), Portable()]


class TinyTransformer(nn.Module):
    """Patches, one block with attention and a causal mask of its own, the first token's classes."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.block = nn.TransformerEncoderLayer(width, 2, 32, batch_first=True, norm_first=True)
        self.head = nn.Linear(width, 5)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patches(image).flatten(2).transpose(1, 2)
        later = torch.ones(4, 4, dtype=torch.bool).triu(1)
        weights = (x @ x.transpose(1, 2)).masked_fill(later, -torch.inf).softmax(-1)
        return self.head(self.block(weights @ x)[:, 0]) + F.adaptive_avg_pool1d(x.mean(1), 5)


class TestValues:
    @pytest.mark.parametrize("backend", BACKENDS, ids=str)
    def test_they_print_compare_and_are_hashed_as_values(self, backend: Backend):
        assert eval(repr(backend)) == backend
        assert hash(backend) == hash(eval(repr(backend)))
        assert str(backend) == repr(backend)

    def test_names_and_where_they_run(self):
        assert [backend.name for backend in BACKENDS] == ["xnnpack", "coreml", "vulkan", "portable"]
        assert [backend.runs_here for backend in BACKENDS] == [True, False, False, True]

    @pytest.mark.parametrize("backend", BACKENDS, ids=str)
    def test_zeros_are_spoken_of_from_thirty_percent_on(self, backend: Backend):
        assert backend.notes(0.29) == ()
        (note,) = backend.notes(0.75)
        assert note.startswith("75% of the parameters are zero")
        assert "Channel()" in note or "sparse_weights" in note

    def test_core_ml_says_what_became_of_zeros_and_of_rounded_weights(self):
        assert "stored sparse" in CoreML(sparse_weights=True).notes(0.5)[0]
        assert "4-bit palettes" in CoreML(weights=Palette()).notes(0)[0]
        assert len(CoreML(weights=Palette()).notes(0.5)) == 2


class TestBadArguments:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"deployment_target": "iOS14"}, "deployment_target: got 'iOS14', must be one of 'iOS15'"),
            ({"compute_unit": "NPU"}, "compute_unit: got 'NPU', must be one of 'ALL'"),
            ({"precision": "int8"}, "precision: got 'int8'"),
            ({"deployment_target": "iOS15", "sparse_weights": True}, "compressed weights since iOS16"),
            ({"deployment_target": "macOS12", "weights": Linear8()}, "since iOS16"),
            (
                {"deployment_target": "iOS17", "sparse_weights": True, "weights": Palette()},
                "sparse_weights together with weights since iOS18; pass deployment_target='iOS18'",
            ),
        ],
    )
    def test_core_ml(self, arguments: dict[str, Any], message: str):
        with pytest.raises(ValueError, match=message):
            CoreML(**arguments)

    def test_types(self):
        with pytest.raises(TypeError, match=r"weights: got 4, must be None, Linear8\(\) or Palette\(bits=4\)"):
            CoreML(weights=4)  # pyright: ignore[reportArgumentType]
        with pytest.raises(ValueError, match="bits: got 5, must be one of"):
            Palette(bits=5)
        with pytest.raises(TypeError, match="make_partitioners: got a list"):
            Partitioned("x", [])  # pyright: ignore[reportArgumentType]
        with pytest.raises(ValueError, match="label: got ''"):
            Partitioned("", list)
        with pytest.raises(TypeError, match="remarks: got the string"):
            Partitioned("x", list, remarks="dense")  # pyright: ignore[reportArgumentType]

    @pytest.mark.parametrize(
        ("given", "text"),
        [
            (Int8Dynamic, r"got the class Int8Dynamic, must be None or a value, as in quantization=Int8Dynamic\(\)"),
            (Int8, r"got the class Int8, must be .*, as in quantization=Int8\(calibration=loader\)"),
            ("int8", r"got 'int8' \(str\), must be .*, as in quantization=Int8Dynamic\(\)"),
        ],
    )
    def test_quantization_is_a_value(self, given: Any, text: str):
        with pytest.raises(TypeError, match=f"quantization: {text}"):
            XNNPACK(quantization=given)
        with pytest.raises(TypeError, match=f"quantization: {text}"):
            Partitioned("x", list, quantization=given)

    def test_core_ml_takes_five_dimensions(self):
        CoreML().check([torch.zeros(1, 1, 1, 1, 1)])
        with pytest.raises(ValueError, match=r"example_inputs\[0\] has 6 dimensions, and Core ML takes at most 5"):
            CoreML().check([torch.zeros(1, 1, 1, 1, 1, 1)])


def test_nothing_of_an_sdk_is_imported_before_it_is_asked_for():
    """Importing some of ExecuTorch's vendor backends starts a download."""
    code = "import sys, lightning_prune.deploy; print([m for m in sys.modules if m.startswith('executorch')])"
    found = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@needs_executorch
class TestExports:
    def test_portable(self, tmp_path: Path):
        model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval(), torch.randn(2, 4)
        artifact = export(model, tmp_path / "m.pte", example_inputs=x, backend=Portable())
        torch.testing.assert_close(RuntimeModel(artifact.path)(x)[0], model(x))
        assert artifact.notes == ()

    def test_a_partitioner_of_ones_own(self, tmp_path: Path):
        backend = Partitioned("mine", XNNPACK().partitioners, can_run_here=True, remarks=("Zeros are free.",))
        artifact = export(
            nn.Sequential(nn.Linear(4, 3)), tmp_path / "m.pte", example_inputs=torch.randn(1, 4), backend=backend
        )
        assert artifact.notes == ("Zeros are free.",)
        assert '"mine"' in artifact.manifest_path.read_text()

    def test_a_missing_sdk(self, tmp_path: Path):
        def partitioners() -> list[Any]:
            raise ImportError("vendor_sdk is not installed: pip install vendor-sdk")

        with pytest.raises(ImportError, match="pip install vendor-sdk"):
            export(
                nn.Linear(4, 3),
                tmp_path / "m.pte",
                example_inputs=torch.randn(1, 4),
                backend=Partitioned("vendor", partitioners),
            )
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.slow
    def test_the_whole_transformer_runs_in_xnnpack(self, tmp_path: Path):
        artifact = export(TinyTransformer(), tmp_path / "m.pte", example_inputs=torch.randn(2, 3, 8, 8))
        assert artifact.notes == ()
        assert artifact.max_abs_error < 1e-5

    @pytest.mark.slow
    @pytest.mark.parametrize("half", [False, True])
    def test_vulkan_takes_a_transformer(self, tmp_path: Path, half: bool):
        level = logging.getLogger().level
        artifact = export(
            TinyTransformer(), tmp_path / "m.pte", example_inputs=torch.randn(1, 3, 8, 8), backend=Vulkan(half=half)
        )
        assert b"VulkanBackend" in artifact.path.read_bytes()
        # its partitioner takes no mean over one dimension; everything else is in it
        outside = [note for note in artifact.notes if "outside" in note]
        assert all("1 in all: aten::mean.dim" in note for note in outside)
        assert len(outside) == 1
        assert logging.getLogger().level == level
