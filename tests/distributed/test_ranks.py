"""What ranks agree on, with plain torch.distributed: one fails and all raise, one differs and all say so."""

import os
import signal
import time
from typing import Any

import pytest
import torch
import torch.distributed as dist
from processes import on_ranks
from ranks_cases import RECIPES, bound, breaks_on_one, event, network, process_group, read, show_gradients

from lightning_prune import OneShot, Recipe
from lightning_prune.distributed import ranks
from lightning_prune.errors import NonFiniteError, PruningError
from lightning_prune.model import masks
from lightning_prune.run.pruner import prune_step


def message(function: Any, *args: Any) -> str:
    """Return type and text of what the function raises; "" when it does not."""
    try:
        function(*args)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def masks_of_event(name: str) -> dict[str, Any]:
    with process_group() as rank:
        net = network()
        pruner = bound(RECIPES[name](), net)
        if name == "taylor":
            show_gradients(pruner, net, seed=rank)
        event(pruner, net)
        return read(net)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_masks_are_the_same_on_all_ranks(name: str, size: int) -> None:
    first, *others = on_ranks(masks_of_event, size, name)
    assert sum(int((~mask).sum()) for mask in first.values()) > 0
    for other in others:
        assert all((other[target] == mask).all() for target, mask in first.items())


@pytest.mark.parametrize("name", ["magnitude", "random", "channels"])
def test_masks_are_those_of_one_process(name: str) -> None:
    net = network()
    event(bound(RECIPES[name](), net), net)
    alone = read(net)
    several, _ = on_ranks(masks_of_event, 2, name)
    assert all((several[target] == mask).all() for target, mask in alone.items())


def mean_of_sums() -> list[Any]:
    with process_group() as rank:
        net = network()
        pruner = bound(RECIPES["taylor"](), net)
        show_gradients(pruner, net, seed=rank)
        own = {name: total.clone() for name, total in pruner.observed.sums.items()}
        pruner.observed.agree()
        return [{name: t.numpy() for name, t in sums.items()} for sums in (own, pruner.observed.sums)]


def test_observed_gradients_are_averaged() -> None:
    (own, mean), (others, other_mean) = on_ranks(mean_of_sums, 2)
    for name, total in mean.items():
        assert (total == other_mean[name]).all()
        assert abs(total - (own[name] + others[name]) / 2).max() <= 1e-6 * abs(total).max()


def alike_and_not() -> Any:
    with process_group() as rank:
        alike, odd = torch.full((3,), 0.1), torch.tensor([float(rank), 0.3])
        ranks.average({"alike": alike, "odd": odd})
        return alike.tolist(), odd.tolist()


def test_what_is_alike_keeps_its_bits() -> None:
    for alike, odd in on_ranks(alike_and_not, 3):
        assert alike == torch.full((3,), 0.1).tolist()
        assert odd == pytest.approx([1.0, 0.3])


def with_a_changed_mask() -> tuple[str, bool]:
    with process_group(seconds=20) as rank:
        net = network()
        pruner = bound(RECIPES["magnitude"](), net)
        event(pruner, net, 0.25)
        if rank == 1:
            masks.mask_of(net[2], "weight")[0].fill_(False)
        return message(event, pruner, net), "weight" in message(masks.check_same, net)


def test_a_mask_changed_on_one_rank_raises_on_all() -> None:
    for text, is_found_at_rest in on_ranks(with_a_changed_mask, 2):
        assert text.startswith("PruningError: the pruning event of step 0 failed: the number of removed units of ")
        assert "differs between rank 0 and rank 1" in text
        assert "resume from the last checkpoint" in text
        assert is_found_at_rest


def with_a_changed_weight() -> str:
    with process_group(seconds=20) as rank:
        net = network()
        pruner = bound(Recipe(schedule=OneShot(0.5), allocation=uniform), net)
        if rank == 1:
            with torch.no_grad():
                masks.parameter_of(net[0], "weight")[0] = 100.0
        return message(event, pruner, net)


def uniform(share: float, candidates: Any) -> dict[str, float]:
    return dict.fromkeys(candidates.sizes, share)


def test_a_weight_changed_on_one_rank_raises_on_all_and_names_the_first_target() -> None:
    for text in on_ranks(with_a_changed_weight, 2):
        assert "the mask of 0.weight differs between rank 0 and rank 1" in text


def with_a_broken_weight() -> tuple[str, int]:
    with process_group(seconds=20) as rank:
        net = network()
        pruner = bound(RECIPES["magnitude"](), net)
        if rank == 1:
            with torch.no_grad():
                masks.parameter_of(net[2], "weight")[0, 0] = torch.nan
        text = message(event, pruner, net)
        dist.barrier()  # the ranks are in step with each other afterwards
        return text, sum(int((~mask).sum()) for mask in masks.read(net).values())


def test_a_rank_that_fails_raises_on_all_and_nothing_is_pruned() -> None:
    (healthy, pruned), (broken, pruned_too) = on_ranks(with_a_broken_weight, 2)
    assert broken.startswith(f"{NonFiniteError.__name__}: 2.weight has 1 weights")
    assert healthy.startswith(f"{PruningError.__name__}: the pruning event of step 0 failed: rank 1: {broken[:30]}")
    assert pruned == pruned_too == 0


def with_a_criterion_that_breaks() -> str:
    with process_group(seconds=20):
        net = network()
        return message(event, bound(Recipe(schedule=OneShot(0.5), criterion=breaks_on_one), net), net)


def test_a_criterion_that_fails_on_one_rank_raises_on_all() -> None:
    healthy, broken = on_ranks(with_a_criterion_that_breaks, 2)
    assert broken == "OSError: no such statistics"
    assert "rank 1: OSError: no such statistics" in healthy


def with_an_optimizer_that_breaks() -> str:
    def carry(_: object) -> None:
        if dist.get_rank() == 0:
            raise ValueError("no room")

    with process_group(seconds=20):
        net = network()
        return message(prune_step, bound(RECIPES["magnitude"](), net), net, 0.5, carry, 7)


def test_a_failure_after_the_masks_are_written_raises_on_all() -> None:
    broken, healthy = on_ranks(with_an_optimizer_that_breaks, 2)
    assert broken == "ValueError: no room"
    assert healthy == "PruningError: the pruning event of step 7 failed: rank 0: ValueError: no room"


def with_other_gradients() -> str:
    with process_group(seconds=20) as rank:
        net = network()
        pruner = bound(RECIPES["taylor"](), net)
        for seed in range(rank + 1):
            show_gradients(pruner, net, seed)
        return message(event, pruner, net)


def test_another_number_of_gradients_is_refused() -> None:
    for text in on_ranks(with_other_gradients, 2):
        assert "the number of observed gradients of 0.weight differs" in text


def with_a_lost_rank() -> None:
    with process_group(seconds=5) as rank:
        net = network()
        pruner = bound(RECIPES["by data"](), net)
        event(pruner, net, 0.25)
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        start = time.perf_counter()
        assert message(event, pruner, net), "went on alone"
        assert time.perf_counter() - start < 10


def test_the_others_end_when_a_rank_dies() -> None:
    with pytest.raises(AssertionError, match="rank 1: died") as raised:
        on_ranks(with_a_lost_rank, 2, timeout=60)
    assert "rank 0" not in str(raised.value)  # it answered, within the timeout of its process group


def answers() -> Any:
    with process_group() as rank:
        ranks.agree()
        return ranks.add_up(torch.tensor([rank + 1])).item(), ranks.from_first(lambda: f"rank {rank}")


def test_decisions_are_taken_together() -> None:
    assert on_ranks(answers, 2) == [(3, "rank 0")] * 2


def test_one_process_asks_nobody() -> None:
    assert ranks.world_size() == 1
    assert ranks.add_up(torch.tensor([2])).item() == 2
    assert ranks.from_first(lambda: 3) == 3
    ranks.agree()
    ranks.check_same({"weight": 1}, "mask")
    with pytest.raises(OSError, match="as it is"), ranks.together("the event"):
        raise OSError("as it is")


def test_a_digest_tells_bytes_shapes_and_types_apart() -> None:
    tensors = [
        torch.zeros(6),
        torch.zeros(2, 3),
        torch.zeros(3, 2),
        torch.zeros(6, dtype=torch.float64),
        torch.zeros(6, dtype=torch.bool),
        torch.tensor([False, True] * 3),
        torch.tensor([True, False] * 3),
        torch.zeros(0),
        torch.tensor(0.0),
    ]
    assert len({ranks.digest(tensor) for tensor in tensors}) == len(tensors)
    for tensor in tensors:
        assert ranks.digest(tensor.clone()) == ranks.digest(tensor)
    assert ranks.digest(tensors[1].t()) == ranks.digest(tensors[2])
