"""A network for each need of a fit: cut from one another, trained together, there after a kill and on every rank."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import support
import torch
from guard_cases import Brittle
from packages import Callback, DDPStrategy, L, ModelCheckpoint
from processes import on_ranks
from support import MixedNet, Net, Resumable, loader, outputs, trainer
from torch import Tensor

from lightning_prune import (
    Channel,
    Each,
    Guard,
    Linear,
    MACs,
    OneShot,
    Params,
    PruningCallback,
    Recipe,
    Taylor,
    prune,
    prune_each,
    summarize,
)
from lightning_prune.compaction import applied_plan
from lightning_prune.model import masks
from lightning_prune.model.example import example_of

SMALL_LAST = Each((Params(0.7), MACs(0.55), Params(0.3)))
RISE = Linear(begin_step=2, end_step=14, frequency=3)
LENGTH = {"max_epochs": 4}
"""Twenty steps: events at 2, 5, 8, 11 and 14."""


def recipe(need: Any = SMALL_LAST, **parts: Any) -> Recipe:
    return Recipe(**({"granularity": Channel(), "criterion": Taylor(), "schedule": RISE, "need": need} | parts))


class Before(Callback):
    """Notes what the model computes after each step; stands before the pruning callback."""

    def __init__(self) -> None:
        self.seen: dict[int, Tensor] = {}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: object, batch: object, batch_idx: int
    ) -> None:
        self.seen[trainer.global_step] = support.outputs(pl_module)


def fitted(folder: Path, need: Any = SMALL_LAST, *callbacks: Any, model: Any = None, **options: Any) -> Any:
    torch.manual_seed(0)
    model, before = Net(16) if model is None else model, Before()
    how = {name: options.pop(name) for name in ("guard", "finalize", "compact_every_event") if name in options}
    callback = PruningCallback(recipe(need, **options.pop("parts", {})), **how)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*left with a single channel")
        trainer(folder, before, callback, *callbacks, **(LENGTH | options)).fit(model, Resumable(), loader(1))
    return model, callback, before.seen


def kept(network: Any) -> dict[str, set[int]]:
    """The channels of each weight that are left."""
    plan = applied_plan(network)
    assert plan is not None
    return {f"{name} {axis}": set(map(int, own)) for name, axes in plan.keep.items() for axis, own in axes.items()}


@pytest.mark.parametrize("options", [{}, {"finalize": False}, {"compact_every_event": True}])
def test_each_need_has_a_network_that_was_trained_until_the_next_event(options: Any, tmp_path: Path) -> None:
    model, callback, seen = fitted(tmp_path, **options)
    dense: Any = summarize(Net(16), example_of(Net(16)))
    large, middle, small = callback.networks
    assert summarize(large).parameters <= 0.7 * dense.parameters
    assert summarize(middle).effective_macs <= 0.55 * dense.macs
    assert summarize(small).parameters <= 0.3 * dense.parameters
    assert summarize(large).effective_macs > 0.55 * dense.macs
    # each event goes no further than to the next network, and that stays as it is until the event after
    asked = [event.asked for event in callback.events]
    steps = [event.step for event in callback.events]
    stops = [steps[number + 1] if number + 1 < len(steps) else 20 for number in range(len(steps))]
    at = {share: stop for share, stop in zip(asked, stops, strict=True)}
    for network, share in ((large, 0.3), (middle, 0.45), (small, 0.7)):
        stop = next(stop for own, stop in at.items() if own == pytest.approx(share, abs=0.01))
        assert torch.allclose(outputs(network), seen[stop], atol=1e-5)
        assert not torch.allclose(outputs(network), seen[stop - 1], atol=1e-5)
        assert not network.training
        assert not masks.is_masked(network)
    for inside, outside in ((middle, large), (small, middle)):
        assert all(own <= kept(outside).get(name, own) for name, own in kept(inside).items())
    assert torch.allclose(outputs(model), outputs(small), atol=1e-6)
    again = callback.networks[0]
    assert again is not large
    assert all(torch.equal(own, again.state_dict()[name]) for name, own in large.state_dict().items())


def same(networks: Any, others: Any) -> bool:
    return all(
        one.state_dict().keys() == other.state_dict().keys()
        and all(torch.equal(own, other.state_dict()[name]) for name, own in one.state_dict().items())
        for one, other in zip(networks, others, strict=True)
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Net, MixedNet])
def test_a_resumed_run_has_the_same_networks(kind: Any, tmp_path: Path) -> None:
    """Bit for bit, those of before the checkpoint and those after it."""
    saving = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    torch.manual_seed(0)
    _, whole, _ = fitted(tmp_path, SMALL_LAST, saving, model=kind(16))
    assert None not in whole.networks
    for step in (1, 5, 6, 11, 13, 20):
        torch.manual_seed(step)
        callback = PruningCallback(recipe())
        path = tmp_path / f"step={step}.ckpt"
        told = torch.load(path, weights_only=True)["lightning_prune"]["run"]["networks"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer(tmp_path, callback, **LENGTH).fit(kind(16), Resumable(), loader(1), ckpt_path=path)
        assert same(callback.networks, whole.networks), step
        assert len(told["held"]) == {1: 0, 5: 0, 6: 0, 11: 1, 13: 1, 20: 2}[step] or step == 20
    other: Any = PruningCallback(recipe(Each((Params(0.7), Params(0.3)))), resume_with_other_recipe=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer(tmp_path, other, **LENGTH).fit(kind(16), Resumable(), loader(1), ckpt_path=tmp_path / "step=13.ckpt")
    assert other.networks[0] is None
    assert summarize(other.networks[1]).parameters <= 0.3 * summarize(kind(16)).parameters


def test_what_a_guard_does_not_let_be_is_none(tmp_path: Path) -> None:
    """The large network keeps the quality, the small one does not: what went too far is rolled back."""
    guard = Guard("val_acc", "max", max_drop=0.01, patience=1, min_step=0.02)
    need, length = Each((Params(0.8), Params(0.1))), {"max_epochs": 8, "val_check_interval": 2}
    model, callback, _ = fitted(tmp_path, need, model=Brittle(), guard=guard, num_sanity_val_steps=0, **length)
    large, small = callback.networks
    assert small is None
    assert {trial.outcome.value for trial in callback.trials} == {"commit", "roll back"}
    assert summarize(model).parameters < summarize(large).parameters <= 0.8 * summarize(Net()).parameters


def networks_of(folder: str) -> Any:
    torch.manual_seed(0)
    callback: Any = PruningCallback(recipe())
    how: dict[str, Any] = {"strategy": DDPStrategy(process_group_backend="gloo"), "devices": 2}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer(Path(folder), callback, **how, **LENGTH).fit(Net(16), loader(10))
    return [{name: own.numpy() for name, own in network.state_dict().items()} for network in callback.networks]


def test_all_ranks_have_the_same(tmp_path: Path) -> None:
    one, other = on_ranks(networks_of, 2, str(tmp_path))
    assert len(one) == 3
    for mine, theirs in zip(one, other, strict=True):
        assert all((own == theirs[name]).all() for name, own in mine.items())


def test_a_rehearsal_comes_down_to_all_of_them_at_once(tmp_path: Path) -> None:
    model, callback = Net(16), PruningCallback(recipe())
    trainer(tmp_path, callback, fast_dev_run=1).fit(model, loader())
    assert callback.networks == (None, None, None)
    assert summarize(model).parameters <= 0.3 * summarize(Net(16)).parameters


def test_prune_each_makes_them_without_training_and_prune_refuses() -> None:
    torch.manual_seed(0)
    data = [torch.randn(32, 1, 6, 6)]
    wanted = recipe(Each((Params(0.7), Params(0.3))), criterion=None, schedule=OneShot())
    both = (wanted, recipe((Params(0.7), Params(0.3)), criterion=None, schedule=OneShot()))
    sizes = [[one.pruned.after.parameters for one in prune_each(Net(16), own, data, progress=False)] for own in both]
    assert sizes[0] == sizes[1]
    with pytest.raises(ValueError, match=r"prune makes one network, and Each\(.*call prune_each"):
        prune(Net(16), wanted, data)


@pytest.mark.parametrize(
    ("need", "parts", "error", "text"),
    [
        (SMALL_LAST, {"schedule": OneShot(begin_step=3)}, ValueError, "too few events to stop at each of 3 networks"),
        (Each((Params(10**9), Params(0.5))), {}, ValueError, r"the network meets Params\(left=1000000000\) as it is"),
        (Each((Params(0.5), Params(1))), {}, ValueError, "cannot be met"),
    ],
)
def test_what_is_refused_before_the_first_step(need: Any, parts: Any, error: Any, text: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=text):
        fitted(tmp_path, need, parts=parts)


def test_several_recipes_with_networks_and_odd_values() -> None:
    with pytest.raises(ValueError, match="several recipes that make a network for each need"):
        PruningCallback([recipe(), recipe()])
    assert PruningCallback(recipe()).networks == ()
    with pytest.raises(ValueError, match="Each makes a network for each of several needs"):
        Each((Params(0.5),))
    with pytest.raises(ValueError, match=r"Each\.needs names Params\(left=0\.5\) twice"):
        Each([Params(0.5), MACs(0.5), Params(0.5)])  # type: ignore[arg-type]
    assert len(Each((Params(0.5), Params(50))).needs) == 2  # which may come to the same, by the network
    for odd in (Params(0.5), "ab", (Params(0.5), 3)):
        with pytest.raises(TypeError, match=r"Each\.needs must be several needs"):
            Each(odd)  # type: ignore[arg-type]
