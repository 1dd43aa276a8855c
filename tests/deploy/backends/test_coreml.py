"""What a .pte for Core ML holds, unpacked by Apple's own tools."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lightning_prune.deploy import (
    XNNPACK,
    CoreML,
    Linear8,
    Normalize,
    Palette,
    decompressed,
    export,
    inspect,
    load_manifest,
    stored_weights,
)
from lightning_prune.errors import ExportError

pytestmark = [
    pytest.mark.slow,
    # coremltools leaves its temporary folders to the garbage collector
    pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.skipif(
        importlib.util.find_spec("executorch") is None or importlib.util.find_spec("coremltools") is None,
        reason="needs the extra 'coreml' (executorch and coremltools)",
    ),
]
IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Pruned(nn.Module):
    """A network of which one convolution and one Linear are to 75 % zero."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.conv, self.linear = nn.Conv2d(16, 64, 3, padding=1), nn.Linear(64, 128)
        nn.init.uniform_(self.norm.running_var, 0.5, 2)  # pyright: ignore[reportArgumentType]
        with torch.no_grad():
            for weight in (self.conv.weight, self.linear.weight):
                weight *= torch.rand_like(weight) > 0.75

    def forward(self, image: Tensor) -> Tensor:
        return self.linear(self.conv(self.norm(self.stem(image)).relu()).relu().mean((2, 3)))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Pruned().eval()


@pytest.fixture(scope="module")
def dense(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("coreml") / "dense.pte"
    return export(model, path, example_inputs=IMAGE, backend=CoreML()).path


def weight_of(path: Path, shape: tuple[int, ...]) -> Tensor:
    (found,) = (torch.from_numpy(value) for value in stored_weights(path).values() if value.shape == shape)
    return found


def test_zeros_are_left_out_and_come_back_to_the_bit(
    model: Pruned, dense: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    artifact = export(
        model,
        tmp_path / "m.pte",
        example_inputs=IMAGE,
        backend=CoreML(deployment_target="iOS18", sparse_weights=True),
    )
    for weight in (model.conv.weight, model.linear.weight):
        assert torch.equal(weight_of(artifact.path, tuple(weight.shape)), weight.detach().half())
        assert torch.equal(weight_of(dense, tuple(weight.shape)), weight.detach().half())
    saved = dense.stat().st_size - artifact.size_bytes
    assert saved > 0.55 * 2 * (model.conv.weight.numel() + model.linear.weight.numel())
    assert any("stored sparse" in note for note in artifact.notes)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("weights", "error"), [(Linear8(), 0.005), (Palette(bits=4), 0.25)], ids=str)
def test_rounded_weights_keep_their_zeros_and_can_be_measured(
    model: Pruned, tmp_path: Path, weights: Linear8 | Palette, error: float
):
    backend = CoreML(sparse_weights=True, weights=weights)
    artifact = export(model, tmp_path / "m.pte", example_inputs=IMAGE, backend=backend)
    given = model.conv.weight.detach()
    stored = weight_of(artifact.path, tuple(given.shape)).float()
    assert (stored[given == 0] == 0).all()
    assert 0 < float((stored - given).abs().max() / given.abs().max()) < error
    rounded = decompressed(model, artifact.path, IMAGE)
    with torch.no_grad():
        assert 0 < float((rounded(IMAGE)[0] - model(IMAGE)).abs().max()) < 0.1
    assert any("measure what the rounding costs" in note for note in artifact.notes)


def test_float32_is_exact(model: Pruned, tmp_path: Path):
    backend = CoreML(precision="float32", sparse_weights=True)
    artifact = export(model, tmp_path / "m.pte", example_inputs=IMAGE, backend=backend)
    assert torch.equal(weight_of(artifact.path, (128, 64)), model.linear.weight.detach())
    torch.testing.assert_close(decompressed(model, artifact.path, IMAGE)(IMAGE)[0], model(IMAGE), rtol=0, atol=1e-6)


def test_another_model_or_file_is_refused(model: Pruned, dense: Path, tmp_path: Path):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        other = Pruned().eval()
    with pytest.raises(ExportError, match="is none of this model's; pass the model that was exported"):
        decompressed(other, dense, IMAGE)
    artifact = export(model, tmp_path / "m.pte", example_inputs=IMAGE, backend=XNNPACK())
    with pytest.raises(ExportError, match=r"holds no Core ML model: export with backend=CoreML\(\)"):
        stored_weights(artifact.path)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8], ids=str)
def test_types_that_core_ml_has_not_are_converted_before_it(dtype: torch.dtype, model: nn.Module, tmp_path: Path):
    class Converting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, image: Tensor) -> Tensor:
            return self.model(image.to(torch.float32) / 127)

    image = (torch.arange(2 * 3 * 8 * 8) % 127).reshape(2, 3, 8, 8).to(dtype)
    artifact = export(Converting().eval(), tmp_path / "m.pte", example_inputs=image, backend=CoreML())
    (contents,) = inspect(artifact.path).methods
    assert [delegate.backend for delegate in contents.delegates] == ["CoreMLBackend"]
    assert any("_to_dim_order_copy" in note for note in artifact.notes)


def test_bytes_of_a_camera(model: nn.Module, tmp_path: Path):
    values = Normalize(mean=[0.4, 0.5, 0.6], std=[0.2, 0.25, 0.3])
    artifact = export(model, tmp_path / "m.pte", example_inputs=IMAGE, backend=CoreML(), preprocess=values)
    assert load_manifest(artifact.path)["methods"]["forward"]["inputs"][0]["dtype"] == "uint8"
    assert stored_weights(artifact.path)


class OnIntegers(nn.Module):
    """What coremltools fails on when its input is of integers, beside what it converts."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor, i: Tensor) -> tuple[Tensor, Tensor]:
        odd = torch.sqrt(i) + torch.exp(-i) + torch.relu(i - 2) + (i & 3) + 1 / (i + 1) + torch.floor(i) + (~i)
        return self.last(self.first(x) * odd + (i + 1) * (i > 2)), i * 2


class OnBools(nn.Module):
    """The same of bools."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor, i: Tensor) -> tuple[Tensor, Tensor]:
        mask, other = i > 2, i > 1
        odd = (mask > other) | torch.maximum(mask, other).roll(1, 1) | mask.gather(1, i) | (mask ^ other)
        chosen = mask.index_select(1, torch.arange(8)).amax(1, keepdim=True)
        return self.last(self.first(x) * odd.float() + chosen), (mask & ~other).sum(1)


class OfNoDimension(nn.Module):
    """0-d tensors in, inside and out, and casts."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor, i: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        y, few = self.last(self.first(x) / self.first(x).abs().max()), i.max()
        return y * few.float().sqrt(), few + 1, y.mean(), torch.where(few > 2, y, -y).argmax(1)


@pytest.mark.parametrize(
    ("kind", "outside"),
    [
        (OnIntegers, {"sqrt", "exp", "relu", "bitwise_and", "reciprocal", "floor", "bitwise_not"}),
        (OnBools, {"gt", "maximum", "gather", "bitwise_xor", "bitwise_or", "index_select", "amax"}),
        (OfNoDimension, set()),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_what_core_ml_does_not_do_on_a_type_stays_outside(kind: type[nn.Module], outside: set[str], tmp_path: Path):
    torch.manual_seed(0)
    inputs = (torch.rand(2, 8), torch.randint(0, 5, (2, 8)))
    artifact = export(kind().eval(), tmp_path / "m.pte", example_inputs=inputs, backend=CoreML())
    (contents,) = inspect(artifact.path).methods
    assert {delegate.backend for delegate in contents.delegates} == {"CoreMLBackend"}
    assert outside <= {operator.removeprefix("aten::").split(".")[0] for operator in contents.outside}
