"""Many small pieces are worked on by one thread, and the others come back."""

import pytest
import torch
from torch import Tensor, nn

from lightning_prune.distributed.threads import one_thread
from lightning_prune.recipe import Recipe
from lightning_prune.run.binding import bind
from lightning_prune.run.pruner import prune_step
from lightning_prune.schedules import OneShot
from lightning_prune.selection.granularity import Channel, Element


@pytest.fixture(autouse=True)
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_it_nests_and_comes_back() -> None:
    with one_thread():
        with one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3


def test_it_comes_back_after_an_error() -> None:
    with pytest.raises(KeyError), one_thread():
        raise KeyError
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize("granularity", [Element(), Channel()], ids=str)
def test_an_event_scores_on_one_thread(granularity: Element | Channel) -> None:
    seen = []

    def watched(name: str, weight: Tensor) -> Tensor:
        seen.append(torch.get_num_threads())
        return weight.abs()

    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    pruner = bind(
        Recipe(schedule=OneShot(0.5), granularity=granularity, criterion=watched), model, (torch.zeros(1, 8),)
    )
    pruner.attach(model)
    prune_step(pruner, model, 0.5)
    assert set(seen) == {1}
    assert torch.get_num_threads() == 3
