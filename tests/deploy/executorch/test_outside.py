"""Operators that a backend fails on run on portable kernels, and a note says so."""

import importlib.util
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_prune.deploy import XNNPACK, Int8, Partitioned, export
from lightning_prune.deploy.checking.comparison import DiffersError
from lightning_prune.deploy.executorch.outside import BackendError, left_out_where_needed
from lightning_prune.deploy.rewriting import moves
from lightning_prune.errors import ExportError, VerificationError

needs_executorch = pytest.mark.skipif(
    importlib.util.find_spec("executorch") is None, reason="needs the extra 'mobile' (executorch)"
)
TAKEN = ("add", "cat", "mul", "sub", "view")


class Backend:
    """Is wrong on some operators, and names those that it cannot lower."""

    def __init__(self, wrong: str = "", refused: tuple[str, ...] = (), error: type[Exception] = DiffersError) -> None:
        self.wrong, self.refused, self.error = wrong, refused, error
        self.attempts: list[set[str]] = []

    def attempt(self, outside: Mapping[str, str]) -> set[str]:
        self.attempts.append(set(outside))
        for name in self.refused:
            if name not in outside:
                raise BackendError(f"no {name}", name)
        if self.wrong and self.wrong not in outside:
            raise self.error(f"wrong {self.wrong}")
        return set(outside)


class TestSearch:
    @pytest.mark.parametrize("wrong", TAKEN)
    @pytest.mark.parametrize("error", [DiffersError, BackendError])
    def test_the_one_that_is_wrong_is_left_out_alone(self, wrong: str, error: type[Exception]):
        backend = Backend(wrong, error=error)
        assert left_out_where_needed(backend.attempt, lambda: TAKEN, True) == {wrong}
        assert len(backend.attempts) <= 6

    def test_what_the_lowering_names_is_left_out_without_a_search(self):
        backend = Backend(refused=("cat", "view"))
        assert left_out_where_needed(backend.attempt, lambda: TAKEN, True) == {"cat", "view"}
        assert len(backend.attempts) == 3

    @pytest.mark.parametrize("error", [VerificationError, ExportError])
    def test_any_other_error_is_not_the_backends(self, error: type[Exception]):
        backend = Backend("mul", error=error)
        with pytest.raises(error, match="wrong mul"):
            left_out_where_needed(backend.attempt, lambda: TAKEN, True)
        assert len(backend.attempts) == 1

    def test_the_first_error_stands_where_no_operator_is_the_reason(self):
        backend = Backend("something else")
        with pytest.raises(DiffersError, match="wrong something else"):
            left_out_where_needed(backend.attempt, lambda: TAKEN, True)
        assert len(backend.attempts) == 2

    def test_nothing_is_tried_again_with_data_that_can_be_read_once(self):
        backend = Backend("mul")
        with pytest.raises(DiffersError):
            left_out_where_needed(backend.attempt, lambda: TAKEN, False)
        assert len(backend.attempts) == 1


class Halves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Conv1d(4, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        low, high = self.net(x).chunk(2, 1)
        return torch.sigmoid(low + high)


def afraid_of_sigmoids() -> list[Any]:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

    class Afraid(XnnpackPartitioner):
        def partition(self, exported_program: Any) -> Any:
            for node in exported_program.graph.nodes:
                if "sigmoid" in str(node.target):
                    raise ValueError("too smooth")
            return super().partition(exported_program)

    return [Afraid()]


@needs_executorch
class TestExport:
    def test_an_operator_that_cannot_be_lowered(self, tmp_path: Path):
        backend = Partitioned("afraid", afraid_of_sigmoids, can_run_here=True)
        artifact = export(Halves(), tmp_path / "m.pte", example_inputs=torch.randn(2, 4, 8), backend=backend)
        (note,) = [note for note in artifact.notes if note.startswith("Left to portable kernels")]
        assert "afraid fails on it or computes it wrongly: aten::sigmoid" in note
        assert artifact.max_abs_error < 1e-5

    @pytest.mark.slow
    def test_an_operator_that_the_runtime_refuses(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(moves, "_MOVES", frozenset())  # which makes slices that XNNPACK takes
        backend = XNNPACK(quantization=Int8([torch.randn(8, 4, 8)]))
        artifact = export(Halves(), tmp_path / "m.pte", example_inputs=torch.randn(2, 4, 8), backend=backend)
        is_refused = any("wrongly: aten::slice_copy.Tensor: " in note for note in artifact.notes)
        assert is_refused == version("executorch").startswith("1.4."), "1.4 has no slice of these, 1.5 has"

    def test_a_failure_names_node_module_line_and_a_way_out(self, tmp_path: Path):
        backend = Partitioned("afraid", afraid_of_sigmoids, can_run_here=True)
        once = iter([torch.randn(2, 4, 8)])  # data that can be read once are not tried again
        text = (
            r"node 'aten_sigmoid_default', at test_outside\.py:\d+: return torch\.sigmoid\(low \+ high\): too smooth"
            r" \(write it with other operators, or export with Portable\(\)\)"
        )
        with pytest.raises(ExportError, match=text):
            export(Halves(), tmp_path / "m.pte", example_inputs=torch.randn(2, 4, 8), backend=backend, verify_on=once)
