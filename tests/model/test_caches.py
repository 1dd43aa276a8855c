"""Dicts of tensors beside the parameters: which of them a run fills again."""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from lightning_prune.model.caches import dicts_of_tensors, empty, put_back, refilled, tensors_beside


class Keeps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.ones(3))
        self.cache: dict[str, Tensor] = {}
        self.constants = {"scale": torch.tensor(2.0)}
        self.last = torch.zeros(1)
        self.plain = [1, 2]

    def forward(self, x: Tensor) -> Tensor:
        if "table" not in self.cache:
            self.cache["table"] = self.table * 1
        return x * self.cache["table"] * self.constants["scale"]


def test_tensors_beside_parameters_and_buffers() -> None:
    module = Keeps()
    module.register_buffer("buffer", torch.ones(1))
    assert tensors_beside(module) == ["constants", "last"]
    module(torch.ones(3))
    assert tensors_beside(module) == ["cache", "constants", "last"]
    assert tensors_beside(nn.Linear(2, 2)) == []


def test_what_is_filled_again_is_emptied_and_what_is_not_stays() -> None:
    model, x = nn.Sequential(Keeps(), Keeps()), torch.ones(3)
    model(x)
    first: Any = model[0]
    cached, constants = first.cache, first.constants
    assert refilled(model, lambda: model(x)) == ("0.cache", "1.cache")
    assert first.cache == model[1].cache == {}
    assert cached.keys() == {"table"}
    assert first.constants is constants


def test_a_cache_alone_is_found_by_one_run_and_a_model_without_dicts_is_not_run() -> None:
    class Alone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.runs, self.memory = 0, defaultdict(lambda: torch.ones(2))
            self.memory["a"] = torch.zeros(2)

        def forward(self) -> Any:
            self.runs += 1
            return self.memory["b"]

    model = Alone()
    assert refilled(model, model) == ("memory",)
    assert model.runs == 1
    assert isinstance(model.memory, defaultdict)
    assert refilled(model, model) == ()
    assert model.runs == 1


def test_emptying_is_undone() -> None:
    model = nn.Sequential(Keeps())
    model(torch.ones(3))
    held = dicts_of_tensors(model)
    empty(model, ["0.cache", "0.constants"])
    assert dicts_of_tensors(model) == {}
    put_back(model, held)
    assert dicts_of_tensors(model).keys() == held.keys() == {"0.cache", "0.constants"}
    assert model[0].cache is held["0.cache"]
