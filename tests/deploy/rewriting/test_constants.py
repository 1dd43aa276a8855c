"""What depends on no input is stored; each backend takes one constant in several parts of a program."""

import importlib.util
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from rewriting_cases import Call, changed, operators, traced
from torch import Tensor, nn
from torch.export import Dim

from lightning_prune.deploy import Int8, Int8Dynamic, RuntimeModel, export
from lightning_prune.deploy.backends import XNNPACK, Backend, CoreML, Vulkan
from lightning_prune.deploy.executorch.lowering import graph_of, lower
from lightning_prune.deploy.program.eager import EagerModel
from lightning_prune.deploy.program.methods import Method
from lightning_prune.deploy.rewriting import rewritten
from lightning_prune.deploy.rewriting.constants import fold_constants

needs_executorch = pytest.mark.skipif(
    importlib.util.find_spec("executorch") is None, reason="needs the extra 'mobile' (executorch)"
)


class Shared(nn.Module):
    """A constant of the model's own that several delegates, and an operator between them, use more than once."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.weights = torch.arange(1.0, 9.0) / 8

    def middle(self, x: Tensor) -> Tensor:
        return torch.cumsum(self.first(x) * self.weights, 1)  # no backend has a cumulative sum

    def forward(self, x: Tensor) -> Tensor:
        between = self.middle(x) + torch.cumsum(self.weights, 0)
        return self.second(between * self.weights) * self.weights + self.weights


class Normed(nn.Module):
    """Layer norms of one width on both sides of what stays outside: the rewrites use one constant in both."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(3))

    def middle(self, x: Tensor) -> Tensor:
        return torch.cumsum(self.norms[1](self.norms[0](x)), 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.norms[2](self.middle(x))


class Views(nn.Module):
    """Weights that are parts of larger tensors, kept so by the model, and made so by folding its code."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, packed = nn.Parameter(torch.randn(16, 8)[8:]), torch.randn(24, 8)
        self.packed = nn.Parameter(packed)
        self.shift: Tensor
        self.register_buffer("shift", torch.randn(3, 8)[1])

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        first, second = self.packed.split([8, 16])
        y = F.linear(x, self.weight) + self.shift
        return F.linear(y, first), F.linear(y, second)


class Cross(nn.Module):
    """Attention of some places over all: torch takes query and key from parts of one packed weight."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x[:, 2:], x, x)[0]


class Anchored(nn.Module):
    """A detector's head that makes its anchors in the first forward pass and keeps them, transposed, as YOLO does."""

    shape: tuple[int, ...] | None = None

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Conv1d(4, 2, 1)
        self.anchors = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        if self.shape != tuple(x.shape[1:]):
            self.shape = tuple(x.shape[1:])
            self.anchors = torch.stack((torch.arange(8.0) + 0.5, torch.arange(8.0) * 2), 1).transpose(0, 1)
        return self.net(x) * self.anchors


class Positions(nn.Module):
    """Positions that are added to every sample of a sequence, made as darts' transformer makes them."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(8, 8)
        self.pe: Tensor
        self.register_buffer("pe", torch.randn(2, 8).unsqueeze(0).transpose(0, 1))  # (2, 1, 8), strides (8, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.net(x) + self.pe)


BATCHES = [torch.randn(8, 4, 8, generator=torch.Generator().manual_seed(3))]
PLACES = [
    pytest.param(XNNPACK(), id="xnnpack"),
    pytest.param(XNNPACK(quantization=Int8(BATCHES)), id="int8"),
    pytest.param(XNNPACK(quantization=Int8Dynamic()), id="int8 dynamic"),
    pytest.param(Vulkan(), id="vulkan", marks=pytest.mark.slow),
    pytest.param(CoreML(), id="coreml", marks=pytest.mark.slow),
]


@needs_executorch
@pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning")  # coremltools leaves its folders
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
class TestLoweredConstants:
    @pytest.mark.parametrize("model", [Shared(), Normed()], ids=["the model's", "ours"])
    @pytest.mark.parametrize("backend", PLACES)
    def test_a_constant_may_be_used_in_several_parts(self, backend: Backend, model: nn.Module, tmp_path: Path):
        if isinstance(backend, CoreML):
            pytest.importorskip("coremltools")
        if isinstance(model, Normed) and backend.quantization is not None:
            pytest.skip("nothing in it becomes an integer")
        artifact = export(model, tmp_path / "m.pte", example_inputs=BATCHES[0][:2], backend=backend)
        if backend.runs_here and backend.quantization is None:
            with torch.no_grad():
                torch.testing.assert_close(RuntimeModel(artifact.path)(BATCHES[0][:2])[0], model(BATCHES[0][:2]))

    @pytest.mark.parametrize("model", [Views(), Cross(), Positions()], ids=["views", "attention", "positions"])
    @pytest.mark.parametrize("backend", [PLACES[0], *PLACES[3:]])  # integers are tensors of their own
    def test_a_constant_may_be_a_part_of_a_larger_tensor(self, backend: Backend, model: nn.Module, tmp_path: Path):
        if isinstance(backend, CoreML):
            pytest.importorskip("coremltools")
        export(model.eval(), tmp_path / "m.pte", example_inputs=BATCHES[0][:2], backend=backend)  # verified

    @pytest.mark.parametrize("is_used", [False, True], ids=["new", "used"])
    @pytest.mark.parametrize("backend", PLACES)
    def test_a_constant_may_be_made_in_the_first_forward_pass(self, backend: Backend, is_used: bool, tmp_path: Path):
        if isinstance(backend, CoreML):
            pytest.importorskip("coremltools")
        if isinstance(backend.quantization, Int8Dynamic):
            pytest.skip("nothing in it becomes an integer")
        model = Anchored().eval()
        if is_used:
            with torch.inference_mode():
                model(BATCHES[0][:2])
        export(model, tmp_path / "m.pte", example_inputs=BATCHES[0][:2], backend=backend)  # verified
        assert (model.shape is not None) == is_used

    @pytest.mark.parametrize("model", [Shared(), Normed()], ids=["the model's", "ours"])
    def test_in_several_methods_of_any_length(self, model: Shared | Normed, tmp_path: Path):
        sizes = {"x": {1: Dim("length", min=2, max=9)}}
        methods = {"middle": Method(model.middle, torch.zeros(2, 4, 8), dynamic_shapes=sizes)}
        example = torch.zeros(2, 4, 8)
        path = export(model, tmp_path / "m.pte", example_inputs=example, dynamic_shapes=sizes, methods=methods).path
        x = torch.randn(2, 7, 8)
        with torch.no_grad():
            torch.testing.assert_close(RuntimeModel(path)(x)[0], model(x), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(RuntimeModel(path, "middle")(x)[0], model.middle(x), rtol=1e-4, atol=1e-5)

    def test_lowering_leaves_the_program_as_it_is(self):
        program = torch.export.export(Shared().eval(), (BATCHES[0][:2],))
        tables = dict(program.state_dict), dict(program.constants), str(program.graph_signature)
        for backend in (Vulkan(), XNNPACK()):
            lower({"forward": program}, backend)
            assert (program.state_dict, program.constants, str(program.graph_signature)) == tables


class Table(nn.Module):
    """A constant table, read at places that the code works out, and a weight used twice."""

    def __init__(self, size: int = 4) -> None:
        super().__init__()
        self.table, self.weight = nn.Parameter(torch.randn(9, 5)), nn.Parameter(torch.randn(5, size))

    def forward(self, x: Tensor) -> Tensor:
        places = (torch.arange(5)[:, None] - torch.arange(4)[None]).clamp(min=0)
        return x @ self.weight + self.table[places].sum(0)[:1, :4].sum() + (x @ self.weight @ self.weight.T).sum()


class TestConstants:
    def test_what_depends_on_no_input_is_stored(self):
        model, x = Table(), torch.randn(3, 5)
        program = rewritten(traced(model, (x,)), (fold_constants,))
        torch.testing.assert_close(program.module()(x), model(x))
        assert not operators(program) & {"arange.default", "index.Tensor", "clamp.default", "arange.start"}
        assert "table" not in program.graph_signature.parameters

    def test_large_results_are_not_stored(self):
        model = Call(lambda x: x + torch.zeros(1, 1).expand(300, 300))
        assert "expand.default" in changed(model, (torch.randn(300, 300),), (fold_constants,))

    def test_a_buffer_that_changes_is_no_constant(self):
        class Counting(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.count: Tensor
                self.register_buffer("count", torch.zeros(2))

            def forward(self, x: Tensor) -> Tensor:
                self.count.add_(1)
                return x + self.count * 2

        program = rewritten(traced(Counting(), (torch.zeros(2),)), (fold_constants,))
        assert "mul.Tensor" in operators(program)
        assert program.graph_signature.buffers_to_mutate

    def test_random_numbers_are_drawn_each_time(self):
        program = rewritten(traced(Call(lambda x: x + torch.rand(3)), (torch.zeros(3),)), (fold_constants,))
        assert "rand.default" in operators(program)

    def test_a_constant_output(self):
        changed(Call(lambda part, x: (x, part.weight * 2, part.weight), nn.Linear(2, 2)), (torch.zeros(3),))


@needs_executorch
def test_weight_norm_and_batch_norm_become_integers_together() -> None:
    normed = nn.utils.parametrizations.weight_norm(nn.Conv1d(3, 8, 3))
    model = nn.Sequential(normed, nn.BatchNorm1d(8), nn.ReLU()).eval()
    graph = graph_of(EagerModel(model), [torch.randn(1, 3, 9)], XNNPACK(quantization=Int8([torch.randn(16, 3, 9)])))
    assert "batch_norm.default" not in operators(graph.program)
    assert graph.quantized is not None
    assert list(graph.quantized.sqnr) == ["0"]
