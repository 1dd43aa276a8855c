"""Lowering without what leaves a program as it is: the same bytes, fewer passes, everything put back."""

import gc
import inspect
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from deploy_models import EXAMPLE, Small
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from lightning_prune.deploy import XNNPACK, Int8, Portable
from lightning_prune.deploy.executorch.lowering import graph_of, lower, save
from lightning_prune.deploy.executorch.quick import quick, quick_graphs
from lightning_prune.deploy.program.eager import EagerModel, eager_outputs

pytest.importorskip("executorch", reason="needs the extra 'mobile' (executorch)")


class Residual(nn.Module):
    """What is fused, decomposed, and laid out otherwise by XNNPACK: (N, 1, 8, 8) -> (N, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU6())
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.pool(torch.cat([x[:, :4], (x + self.depthwise(x)).relu_()[:, 4:]], 1) * 2 + 1)
        return self.head(nn.functional.interpolate(x, scale_factor=2.0, mode="bilinear").mean((2, 3)))


class Block(nn.Module):
    """What keeps its Linear layers whole: (N, 4, 8, 8) -> (N, 8, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x.squeeze(1))
        y = nn.functional.scaled_dot_product_attention(y, y, y)
        return y + self.down(nn.functional.gelu(self.up(y)))


class Remembering(nn.Module):
    """Writes a buffer of its own: (N, 1, 8, 8) -> the same."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1)
        self.past: Tensor
        self.register_buffer("past", torch.zeros(4, 1, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        self.past.copy_(self.past * 0.5 + self.conv(x))
        return self.past.relu()


def written(model: nn.Module, backend: Any, path: Path, block: Callable[[], Any]) -> bytes:
    eager = EagerModel(model.eval())
    with torch.no_grad(), block():
        eager_outputs(eager, (EXAMPLE,))
        save(lower({"forward": graph_of(eager, (EXAMPLE,), backend).program}, backend), path)
    return path.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "backend"),
    [
        (Residual, XNNPACK()),
        (Residual, Portable()),
        (Residual, XNNPACK(quantization=Int8([torch.randn(4, 1, 8, 8)]))),
        (Block, XNNPACK()),
        (Remembering, XNNPACK()),
    ],
    ids=["xnnpack", "portable", "int8", "linear", "state"],
)
def test_bytes_are_the_same(make: Callable[[], nn.Module], backend: Any, tmp_path: Path):
    model = make()
    first = written(model, backend, tmp_path / "model.pte", quick)
    assert written(model, backend, tmp_path / "model.pte", nullcontext) == first


@pytest.mark.slow
def test_most_passes_and_decompositions_are_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from executorch.exir.pass_base import ExportPass
    from torch.export import exported_program

    made = {"passes": 0, "decompositions": 0}

    def counted(place: Any, name: str, what: str) -> None:
        function = getattr(place, name)

        def call(*args: Any, **named: Any) -> Any:
            made[what] += 1
            return function(*args, **named)

        monkeypatch.setattr(place, name, call)

    counted(ExportPass, "call_submodule", "passes")
    counted(exported_program, "_decompose_exported_program", "decompositions")
    written(Small(), XNNPACK(), tmp_path / "model.pte", nullcontext)
    usual, made = made, {"passes": 0, "decompositions": 0}
    written(Small(), XNNPACK(), tmp_path / "model.pte", quick)
    assert (usual["decompositions"], made["decompositions"]) == (3, 1)
    assert made["passes"] <= usual["passes"] / 2


def test_everything_is_put_back():
    from executorch.exir.pass_base import ExportPass
    from executorch.exir.pass_manager import ExportedProgramPassManager
    from executorch.exir.program import _program
    from torch.fx import traceback

    def all_of() -> list[object]:
        return [
            fx.GraphModule.recompile,
            fx.GraphModule.__str__,
            vars(traceback)["copy"],
            ExportedProgram.run_decompositions,
            ExportedProgram.validate,
            ExportedProgram._validate,
            ExportPass.call,
            ExportedProgramPassManager.check,
            _program._default_decomposition_table,
            gc.isenabled(),
        ]

    before = all_of()
    with suppress(KeyError), quick():
        assert all(now is not usual for now, usual in zip(all_of(), before, strict=True))
        raise KeyError
    assert all_of() == before


def test_passes_that_change_something_are_made():
    from executorch.exir.pass_base import ExportPass

    class Plain(ExportPass):
        pass

    class Asking(ExportPass):
        def call_operator(self, op: Any, args: Any, kwargs: Any, meta: Any) -> Any:
            return super().call_operator(op, (*args,), {**kwargs}, meta)

    class Negative(ExportPass):
        def call_operator(self, op: Any, args: Any, kwargs: Any, meta: Any) -> Any:
            other = torch.ops.aten.neg.default if op is torch.ops.aten.relu.default else op
            return super().call_operator(other, args, kwargs, meta)

    class Floats(ExportPass):
        def call_operator(self, op: Any, args: Any, kwargs: Any, meta: Any) -> Any:
            return super().call_operator(op, tuple(float(a) if isinstance(a, int) else a for a in args), kwargs, meta)

    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.add(x.relu(), 2)

    def targets(graph: Any) -> list[Any]:
        return [node.target for node in graph.graph.nodes if node.op == "call_function"]

    x = torch.tensor([-1.0, 3.0])
    graph = torch.export.export(Net(), (x,)).graph_module
    with quick():
        first = Plain()(graph)
        assert first is not None
        known = first.graph_module
        assert known is not graph
        for kind in (Plain, Asking):
            same = kind()(known)
            assert same is not None
            assert same.graph_module is known
        for kind, expected in ((Negative, [3.0, -1.0]), (Floats, [2.0, 5.0])):
            changed = kind()(known)
            assert changed is not None
            assert changed.graph_module is not known
            assert changed.graph_module(x)[0].tolist() == expected
        assert targets(changed.graph_module) == targets(known)
        (add,) = (node for node in known.graph.nodes if node.target is torch.ops.aten.add.Tensor)
        add.args = (add.args[0], 7)
        edited = Plain()(known)
        assert edited is not None
        assert edited.graph_module is not known
        assert edited.graph_module(x)[0].tolist() == [7.0, 10.0]


def test_a_graph_is_what_it_was_last_edited_to():
    with quick_graphs():
        graph = fx.symbolic_trace(nn.Sequential(nn.ReLU()))
        (node,) = (node for node in graph.graph.nodes if node.op == "call_module")
        with graph.graph.inserting_after(node):
            new = graph.graph.call_function(torch.neg, (node,))
        node.replace_all_uses_with(new, lambda user: user is not new)
        graph.recompile()
        assert graph(torch.tensor([2.0])).tolist() == [-2.0]
        with graph.graph.inserting_after(new):
            last = graph.graph.call_function(torch.neg, (new,))
        new.replace_all_uses_with(last, lambda user: user is not last)
        graph.recompile()
    assert list(inspect.signature(graph.forward).parameters) == ["input"]
    assert graph(torch.tensor([2.0])).tolist() == [2.0]
    assert "neg" in graph.code
