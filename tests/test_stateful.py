"""What the benchmark of models with memory claims: exact halves, both sides in step, every fault by its name."""

from pathlib import Path

import pytest
import torch

from benchmarks import stateful
from lightning_prune.deploy import export


@pytest.mark.parametrize("name", stateful.MODELS)
def test_half_of_every_group_is_exact_over_256_calls_and_takes_half_of_the_state(name: str):
    _, error, before, after = stateful.half(stateful.made(stateful.MODELS[name]), torch.float64)
    assert error < 1e-12
    assert after == before // 2


def test_a_chaotic_cell_is_no_reason_to_refuse():
    model = stateful.made(stateful.Chaotic)
    # 0 where a processor adds up 16 products, half of them 0, in the order of 8, which not all do
    for dtype, most in ((torch.float32, 1e-6), (torch.float64, 1e-12)):
        _, error, before, after = stateful.half(model, dtype, step=1)
        assert error < most
        assert after == before // 2
    calls = stateful.rows(model, 1, 256, 3)[0]
    outputs = stateful.run(model, calls)
    model.get_buffer("h").add_(1e-6)
    assert (stateful.run(model, calls)[-1] - outputs[-1]).abs().max() > 0.1  # it is chaotic


@pytest.mark.slow
@pytest.mark.parametrize("name", stateful.MODELS)
def test_in_step_on_the_file_dense_and_half(name: str, tmp_path: Path):
    pytest.importorskip("executorch")
    dense = stateful.made(stateful.MODELS[name])
    for model in (dense, stateful.half(dense, torch.float32)[0]):
        export(model, tmp_path / "a.pte", example_inputs=stateful.rows(model, 1, 1, 7)[0][0])
        assert stateful.in_step(tmp_path / "a.pte", model) <= 1e-6


WORDS = {
    "not carried": "the state is not carried from call to call",
    "carried twice": "the state is carried twice in a call",
    "one step late": "the state arrives one call late",
    "wrong slot": "mean is written to the wrong slot of its axis 1",
    "zeros": "the first state is zeros, not the model's",
    "drift that grows": "and the difference grows from call to call",
    ".data": "mean: Faulty changes this buffer in a way that torch.export does not see, such as self.mean.data",
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", stateful.FAULTS)
def test_a_fault_is_refused_by_its_name(fault: str, tmp_path: Path):
    pytest.importorskip("executorch")
    assert WORDS[fault] in stateful.named(fault, tmp_path)


@pytest.mark.slow
def test_a_reset_without_effect_is_named(tmp_path: Path):
    pytest.importorskip("executorch")
    assert "the state of the sequence before is there after a reset" in stateful.stale(tmp_path)
