from pathlib import Path
from typing import Literal

import pytest
import torch
from deploy_models import EXAMPLE, Small, exported, small
from torch import Tensor, nn

from benchmarks.memory import Apart
from lightning_prune import Compaction, channel_groups, compact
from lightning_prune.deploy import Artifact, Inspection, export, inspect
from lightning_prune.deploy.backends import Portable
from lightning_prune.deploy.inspect import Delegate, MethodContents, Value
from lightning_prune.errors import ExportError

pytest.importorskip("executorch", reason="needs the extra 'mobile' (executorch)")


class Outside(nn.Module):
    """A convolution inside the delegate, a cumulative sum outside of it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.head = nn.Linear(8, 3)
        with torch.no_grad():
            self.conv.weight[:6] = 0

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.cumsum(self.conv(image).relu(), 1)
        return self.head(hidden.amax((2, 3))), hidden.argmax(1)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return exported(tmp_path_factory.mktemp("inspection"))


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Inspection:
    path = tmp_path_factory.mktemp("outside") / "outside.pte"
    export(Outside(), path, example_inputs=EXAMPLE)
    return inspect(path)


def test_facts_are_those_of_the_artifact(artifact: Artifact):
    found = inspect(artifact.path)
    assert (found.size_bytes, found.sha256, found.is_verified) == (artifact.size_bytes, artifact.sha256, True)
    forward = found["forward"]
    assert list(map(str, forward.inputs)) == ["image (4, 1, 8, 8) float32"]
    assert list(map(str, forward.outputs)) == ["output (4, 3) float32"]
    assert forward.delegated_share == 1
    assert forward.outside == {}
    assert forward.planned_bytes > 0


@pytest.mark.slow
def test_of_two_parts_the_larger_block_counts(tmp_path: Path):
    model, image = Apart().eval(), torch.zeros(1, 3, 24, 24)
    held = []
    for parts, made in enumerate((model.first, model), 1):
        export(made, tmp_path / f"{parts}.pte", example_inputs=image)
        forward = inspect(tmp_path / f"{parts}.pte")["forward"]
        assert len(forward.delegates) == parts
        assert forward.memory_bytes is not None
        held.append(forward.memory_bytes - forward.planned_bytes - 4 * sum(p.numel() for p in made.parameters()))
    assert held[1] - held[0] == 3 * 8 * 9 * 24 * 24  # addresses of three convolutions; the second block is smaller


def test_operators_inside_and_outside(outside: Inspection):
    forward = outside["forward"]
    inside = sum(sum((one.operators or {}).values()) for one in forward.delegates)
    assert {"aten::cumsum.out", "aten::argmax.out"} <= forward.outside.keys()
    assert sum("linear" in (one.operators or {}) for one in forward.delegates) == 1
    assert forward.delegated_share == pytest.approx(inside / (inside + sum(forward.outside.values())))
    assert [one.calls for one in forward.delegates] == [1] * len(forward.delegates)


@pytest.mark.slow
def test_attention_is_delegated_whole_after_heads_and_widths_went(tmp_path: Path):
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=True)
    model, x = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval(), torch.randn(1, 8, 32)
    ways: tuple[Literal["heads", "width"], ...] = ("heads", "width")
    for way in ways:
        groups = channel_groups(model, x, attention=way)
        keep = {group.name: range(group.size // 2) for group in groups if group.prunable and "attn" in group.name}
        compact(model, Compaction.from_keep(groups, keep), x)
    assert {layer.self_attn.in_proj_weight.shape[0] for layer in model.layers} == {3 * 2 * 4}  # type: ignore[union-attr]
    export(model, tmp_path / "a.pte", example_inputs=x)
    forward = inspect(tmp_path / "a.pte")["forward"]
    assert forward.outside == {}
    (delegate,) = forward.delegates
    operators = delegate.operators or {}
    assert (operators["softmax"], operators["batch_matmul"]) == (2, 4)


def test_weights_and_zeros_are_counted(outside: Inspection):
    model = Outside()
    assert outside.numbers == sum(p.numel() for p in model.parameters())
    assert outside.zeros == 6 * 9
    assert outside.sparsity == pytest.approx(54 / outside.numbers)
    assert (outside.constant_bytes, outside.unread_bytes) == (4 * outside.numbers, 0)


@pytest.mark.parametrize("shared", [False, True])
def test_zeros_without_a_delegate(tmp_path: Path, shared: bool):
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 4, bias=False)
            self.second = self.first if shared else nn.Linear(4, 4, bias=False)
            with torch.no_grad():
                self.first.weight[0] = -0.0

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x).relu())

    export(Twice(), tmp_path / "a.pte", example_inputs=torch.zeros(2, 4), backend=Portable())
    found = inspect(tmp_path / "a.pte")
    assert (found.numbers, found.zeros) == ((16, 4) if shared else (32, 4))
    assert found["forward"].delegates == ()
    assert "delegates   none" in str(found)


def test_text(artifact: Artifact, outside: Inspection):
    text = str(inspect(artifact.path))
    for line in (
        "manifest      verified (small.json)",
        "image (4, 1, 8, 8) float32",
        "100% of the operators",
        artifact.sha256,
    ):
        assert line in text
    assert "aten::cumsum.out" in str(outside)


class TestManifest:
    def test_without(self, artifact: Artifact, tmp_path: Path):
        (tmp_path / "a.pte").write_bytes(artifact.path.read_bytes())
        found = inspect(tmp_path / "a.pte")
        assert not found.is_verified
        assert "*unverified*: no a.json beside it" in str(found)
        assert list(map(str, found["forward"].inputs)) == ["input (4, 1, 8, 8) float32"]

    def test_weights_apart_are_told_without_a_manifest(self, tmp_path: Path):
        export(small(), tmp_path / "a.pte", example_inputs=EXAMPLE, external_weights=True)
        (tmp_path / "a.json").unlink()
        size = (tmp_path / "a.ptd").stat().st_size
        assert f"; {size:,} bytes in a.ptd" in str(inspect(tmp_path / "a.pte"))
        (tmp_path / "a.ptd").unlink()
        assert "others in a .ptd file, which is missing: there is no a.ptd" in str(inspect(tmp_path / "a.pte"))

    def test_of_another_file(self, artifact: Artifact, tmp_path: Path):
        export(small(seed=5), tmp_path / "small.pte", example_inputs=EXAMPLE)
        (tmp_path / "small.json").write_bytes(artifact.manifest_path.read_bytes())
        with pytest.raises(ExportError, match=r"small.pte is not the file that small.json describes"):
            inspect(tmp_path / "small.pte")


@pytest.mark.parametrize(
    "data", [b"", b"\x00" * 64, b"PK\x03\x04" + b"x" * 99, b"\x10\0\0\0ET12", b"\xff\xff\xff\xffET12" + b"\xff" * 99]
)
def test_something_else(tmp_path: Path, data: bytes):
    (tmp_path / "a.pte").write_bytes(data)
    with pytest.raises(ExportError, match=r"a.pte cannot be used: "):
        inspect(tmp_path / "a.pte")


def test_names_of_others_forge_no_row_and_move_no_cursor():
    bad = "a\n  manifest      verified\x1b[2J"
    values = (Value(bad, (1,), bad),)
    method = MethodContents(bad, values, values, (Delegate(bad, 1, 1, {bad: 2}),), {bad: 1}, 0)
    text = str(Inspection(Path("a.pte"), 1, "", False, (method,), 0, 0, 0, 0, {bad: 1}))
    assert "\x1b" not in text
    assert sum(line.startswith("  manifest") for line in text.splitlines()) == 1
    assert text.count(r"a\n  manifest      verified\x1b[2J") == 9


def test_method_that_is_not_there(artifact: Artifact):
    with pytest.raises(KeyError, match=r"small.pte has no method 'nope': its methods are forward"):
        inspect(artifact.path)["nope"]


def test_no_file(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"no .pte file at .*a.pte"):
        inspect(tmp_path / "a.pte")
    with pytest.raises(ValueError, match=r"must end in .pte"):
        inspect(tmp_path / "a.json")


def test_the_eager_model_is_no_part_of_it(artifact: Artifact):
    assert inspect(artifact.path).numbers == sum(p.numel() for p in folded(Small()).values())


def folded(model: Small) -> dict[str, Tensor]:
    """Batch norm folds into the convolution, which then has a bias: 72 + 8 + 24 + 3 numbers."""
    return {name: p for name, p in model.named_parameters() if not name.startswith("norm")}
