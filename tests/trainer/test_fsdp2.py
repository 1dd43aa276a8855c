"""Sharded weights (FSDP2): the masks of an event are those of one process, bit for bit, and a run resumes anywhere."""

import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from packages import L, ModelCheckpoint, ModelParallelStrategy
from processes import on_ranks
from ranks_cases import by_shape, process_group, read, show_gradients
from support import AfterStep, Resumable, trainer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_prune import (
    ERK,
    Block,
    Channel,
    Linear,
    NOfM,
    OneShot,
    PruningCallback,
    PruningMixin,
    Random,
    Recipe,
    Rewarm,
    RewindWeights,
    Targets,
    Taylor,
    Uniform,
    finalize,
)
from lightning_prune.distributed import shards
from lightning_prune.model import masks
from lightning_prune.optimizer.surgery import zero_state
from lightning_prune.run.binding import bind
from lightning_prune.run.pruner import prune_step

ONCE = OneShot(0.5, begin_step=1)
RECIPES: dict[str, Callable[[], Recipe]] = {
    "global": lambda: Recipe(schedule=ONCE),
    "uniform": lambda: Recipe(schedule=ONCE, allocation=Uniform()),
    "erk": lambda: Recipe(schedule=ONCE, allocation=ERK()),
    "random": lambda: Recipe(schedule=ONCE, criterion=Random(2)),
    "taylor": lambda: Recipe(schedule=ONCE, criterion=Taylor()),
    "function": lambda: Recipe(schedule=ONCE, criterion=by_shape),
    "parameters": lambda: Recipe(schedule=ONCE, count="params"),
    "channels": lambda: Recipe(schedule=ONCE, granularity=Channel()),
    "1:2": lambda: Recipe(schedule=ONCE, granularity=NOfM(1, 2), targets=Targets(("0", "2", "4"))),
    "blocks": lambda: Recipe(schedule=ONCE, granularity=Block((1, 2)), targets=Targets(("0", "4"))),
}


def shard(net: nn.Module, **options: Any) -> None:
    """Shard each Linear layer but the widest, which stays whole, over all ranks."""
    from torch.distributed.fsdp import fully_shard

    for layer in net.modules():
        if isinstance(layer, nn.Linear):
            fully_shard(layer, **options)


def network() -> nn.Sequential:
    """Layers of 13, 12, 3 and 1 rows, which leave uneven and empty shards; rounded weights, which tie."""
    torch.manual_seed(0)
    layers = (nn.Linear(8, 13), nn.Linear(13, 12), nn.Linear(12, 3), nn.Linear(3, 1))
    with torch.no_grad():
        for layer in layers:
            layer.weight.copy_((layer.weight * 20).round() / 20)
    return nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())))


def pruned(name: str, is_sharded: bool, whole: tuple[int, ...] = ()) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train and prune twice; return the masks and the zeros in what AdamW remembers."""
    net = network()
    pruner = bind(RECIPES[name](), net, (torch.zeros(2, 8),))
    pruner.attach(net)
    if is_sharded:
        shard(nn.ModuleList(layer for index, layer in enumerate(net) if index not in whole))
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    for sparsity in (0.2, 0.5):
        show_gradients(pruner, net, seed=0)
        with torch.no_grad():
            net(torch.zeros(2, 8))  # leaves whole weights behind where FSDP2 does not reshard
        optimizer.step()
        prune_step(pruner, net, sparsity, lambda live: zero_state(optimizer, live))
    moments = {n: optimizer.state[p]["exp_avg"] for n, p in masks.dense_parameters(net).items() if n in masks.read(net)}
    return read(net), {name: shards.whole(moment).numpy() for name, moment in moments.items()}


def pruned_shards(name: str, whole: tuple[int, ...]) -> Any:

    with process_group():
        return pruned(name, True, whole)


@pytest.mark.parametrize("size", [2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", RECIPES)
def test_masks_are_those_of_one_process_bit_for_bit(name: str, size: int) -> None:

    alone, remembered = pruned(name, False)
    assert sum(int((~mask).sum()) for mask in alone.values())
    for found, moments in on_ranks(pruned_shards, size, name, ()):
        assert found.keys() == alone.keys()
        for target, mask in alone.items():
            assert (found[target] == mask).all(), target
            assert (moments[target][~mask] == 0).all(), target
            assert abs(moments[target] - remembered[target]).max() < 1e-6, target


@pytest.mark.parametrize("name", ["global", "channels", "taylor"])
def test_layers_that_stay_whole_count_once(name: str) -> None:
    alone, _ = pruned(name, False)
    for found, _ in on_ranks(pruned_shards, 2, name, (2, 6)):
        assert all((found[target] == mask).all() for target, mask in alone.items())


def refused(case: str) -> str:
    from torch.distributed.tensor import Shard

    with process_group(seconds=20):
        net = network()
        recipe = {"block": Recipe(schedule=ONCE, granularity=Block((12, 1)), targets=Targets(("2",)))}.get(
            case, Recipe(schedule=ONCE)
        )
        if case == "rewind":
            recipe = Recipe(schedule=ONCE, optimizer_policy=RewindWeights(0))
        pruner = bind(recipe, net, (torch.zeros(2, 8),))
        if case == "late":
            shard(net)
        try:
            pruner.attach(net)
            if case == "columns":
                shard(net[0], shard_placement_fn=lambda p: Shard(p.dim() - 1))
            else:
                shard(net)
            if case == "fold":
                masks.fold(net)
            prune_step(pruner, net, 0.5)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    return ""


@pytest.mark.parametrize(
    ("case", "text"),
    [
        ("block", "2.weight is sharded by rows, of which this rank holds 0 to 6, and units of Block"),
        ("rewind", "RewindWeights.* keeps whole weights, and 0.weight is sharded"),
        ("late", "0.weight is sharded over several ranks already, and masks have to be there first"),
        ("columns", "0.weight lies over the ranks as .*along their first axis"),
        ("fold", "0.weight is sharded over several ranks.*finalize"),
    ],
)
def test_what_shards_cannot_do_is_refused_by_name(case: str, text: str) -> None:
    import re

    first, _ = on_ranks(refused, 2, case)
    assert re.match(f"PruningError: {text}", first), first


class Sharded(PruningMixin, L.LightningModule):
    """A perceptron that is sharded over all ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.example_input_array = torch.zeros(2, 36)
        self.layers = nn.Sequential(nn.Linear(36, 20), nn.ReLU(), nn.Linear(20, 10), nn.ReLU(), nn.Linear(10, 4))

    def configure_model(self) -> None:
        if self._trainer is not None and isinstance(self.trainer.strategy, ModelParallelStrategy):
            from torch.distributed.fsdp import FSDPModule, fully_shard

            assert self.device_mesh is not None
            for layer in self.layers:
                if isinstance(layer, nn.Linear) and not isinstance(layer, FSDPModule):
                    fully_shard(layer, mesh=self.device_mesh["data_parallel"])

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images.flatten(1))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.01)


class OwnBatches(Resumable):
    """Other batches on each rank."""

    def __init__(self, rank: int, ranks: int) -> None:
        super().__init__(5 * ranks)
        self._batches = self._batches[rank::ranks]


RISE = Linear(final_sparsity=0.6, begin_step=2, end_step=8, frequency=2)
FITS: dict[str, Callable[[], Recipe]] = {
    "element": lambda: Recipe(schedule=RISE, optimizer_policy=Rewarm(2)),
    "taylor": lambda: Recipe(schedule=RISE, criterion=Taylor()),
    "channel": lambda: Recipe(schedule=RISE, granularity=Channel()),
}


def fitted(folder: str, name: str, size: int, **options: Any) -> Any:
    """Fit on shards; return events, masks after each step, masks and weights at the end, and the warnings."""
    torch.manual_seed(int(options.pop("seed", 0)))
    model, callback = Sharded(), PruningCallback(FITS[name]())
    strategy = ModelParallelStrategy(data_parallel_size=size, tensor_parallel_size=1, process_group_backend="gloo")
    seen: dict[int, Any] = {}
    note = AfterStep(lambda t, m: seen.update({t.global_step: read(m)}))
    saving = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    fit = trainer(Path(folder), callback, note, saving, strategy=strategy, devices=size)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit.fit(model, OwnBatches(int(os.environ["RANK"]), size), **options)
    weights = {name: shards.whole(p.detach()).numpy() for name, p in masks.dense_parameters(model).items()}
    return callback.events, seen, weights, [str(w.message) for w in caught]


@pytest.mark.slow
@pytest.mark.parametrize("name", FITS)
def test_a_sharded_fit_prunes_resumes_and_is_finalized_in_one_process(name: str, tmp_path: Path) -> None:
    (events, seen, weights, said), (other_events, *_) = on_ranks(fitted, 2, str(tmp_path), name, 2)
    assert [e.step for e in events] == [4, 6, 8]
    assert events == other_events
    assert events[-1].sparsity == pytest.approx(0.6, abs=0.03)
    for target, mask in seen[10].items():
        assert (weights[target][~mask] == 0).all()
    assert sum("masks stay on" in text for text in said) == 1
    for step in (3, 5, 10):
        checkpoint = {"ckpt_path": str(tmp_path / f"step={step}.ckpt"), "seed": step}
        again, found, ended, _ = on_ranks(resumed, 2, str(tmp_path / "again"), name, 2, checkpoint)[0]
        assert again == events
        assert all((mask == seen[step][target]).all() for step, live in found.items() for target, mask in live.items())
        assert all((ended[target] == weight).all() for target, weight in weights.items())
    _finalized_alone(tmp_path / "step=10.ckpt", seen[10], weights)


def resumed(folder: str, name: str, size: int, options: dict[str, Any]) -> Any:
    return fitted(folder, name, size, **options)


def _finalized_alone(path: Path, expected: dict[str, Any], weights: dict[str, Any]) -> None:
    tool = "lightning.fabric.utilities.consolidate_checkpoint"
    subprocess.run([sys.executable, "-m", tool, str(path)], check=True, capture_output=True)
    model = Sharded.load_from_checkpoint(f"{path}.consolidated")
    assert all((masks.read(model)[name].numpy() == mask).all() for name, mask in expected.items())
    assert all((p.detach().numpy() == weights[name]).all() for name, p in masks.dense_parameters(model).items())
    before = model.eval()(torch.ones(2, 36))
    assert torch.allclose(finalize(model)(torch.ones(2, 36)), before, atol=1e-6)
    assert not masks.is_masked(model)


@pytest.mark.parametrize("size", [1, 3])
def test_a_run_resumes_on_another_number_of_ranks(size: int, tmp_path: Path) -> None:
    _, seen, *_ = on_ranks(fitted, 2, str(tmp_path), "taylor", 2)[0]
    checkpoint = {"ckpt_path": str(tmp_path / "step=5.ckpt")}
    for events, found, *_ in on_ranks(resumed, size, str(tmp_path / "again"), "taylor", size, checkpoint):
        assert [e.step for e in events] == [4, 6, 8]
        first = found[6]
        for target, mask in seen[5].items():
            assert not (first[target] & ~mask).any()
            assert (first[target] != mask).any() or mask.size < 41
