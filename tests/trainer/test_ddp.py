"""Fits under DDP: every rank has the same masks, whatever scores and data they have, and a failure ends all."""

import os
import signal
import time
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from packages import DDPStrategy, L, ModelCheckpoint
from processes import on_ranks
from ranks_cases import by_data, read
from support import AfterStep, LinearNet, Net, Resumable, loader, momentum_sgd, trainer
from torch import Tensor

from lightning_prune import (
    Channel,
    LeastSquares,
    Linear,
    PruningCallback,
    Random,
    Recipe,
    Reconstruction,
    Taylor,
    Uniform,
)
from lightning_prune.model import masks

RISE = Linear(final_sparsity=0.6, begin_step=1, end_step=4, frequency=1)
LATER = Linear(final_sparsity=0.6, begin_step=1, end_step=5, frequency=2)
RECIPES: dict[str, Callable[[], Recipe]] = {
    "random": lambda: Recipe(schedule=RISE, criterion=Random(1), allocation=Uniform()),
    "taylor": lambda: Recipe(schedule=RISE, criterion=Taylor()),
    "by data": lambda: Recipe(schedule=RISE, criterion=by_data),
    "channels": lambda: Recipe(schedule=RISE, granularity=Channel(), criterion=Taylor()),
    "reconstruction": lambda: Recipe(schedule=LATER, granularity=Channel(), criterion=Reconstruction(samples=32)),
    "repair": lambda: Recipe(schedule=RISE, granularity=Channel(), repair=LeastSquares(samples=32)),
}


def strategy(**options: Any) -> DDPStrategy:
    return DDPStrategy(process_group_backend="gloo", timeout=timedelta(seconds=30), **options)


def fitted(folder: str, recipe: Recipe, ranks: int, *callbacks: Any, **options: Any) -> Any:
    """Fit on other batches on each rank; return masks after each step, weights at the end, and the callback."""
    torch.manual_seed(0)
    model, callback = options.pop("model", Net)(), PruningCallback(recipe, **options.pop("pruning", {}))
    seen: dict[int, Any] = {}
    note = AfterStep(lambda t, m: seen.update({t.global_step: read(m)}))
    if ranks > 1:
        options = {"strategy": strategy(), "devices": ranks} | options
    fit = trainer(Path(folder), callback, note, *callbacks, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit.fit(model, loader(5 * ranks, batch_size=4))
    return seen, {n: p.detach().numpy() for n, p in masks.dense_parameters(model).items()}, callback


def masks_of_fit(folder: str, name: str, ranks: int, options: dict[str, Any]) -> Any:
    seen, weights, callback = fitted(folder, RECIPES[name](), ranks, **options)
    return seen, weights, [(e.step, e.sparsity) for e in callback.events]


def assert_alike(results: list[Any]) -> None:
    (seen, weights, events), *others = results
    assert events
    for other_seen, other_weights, other_events in others:
        assert other_events == events
        assert other_seen.keys() == seen.keys()
        for step, live in seen.items():
            assert all((other_seen[step][name] == mask).all() for name, mask in live.items()), step
        assert all((other_weights[name] == weight).all() for name, weight in weights.items())


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", RECIPES)
def test_masks_and_weights_are_the_same_on_all_ranks(name: str, ranks: int, tmp_path: Path) -> None:
    assert_alike(on_ranks(masks_of_fit, ranks, str(tmp_path), name, ranks, {}))


def test_gradient_accumulation_counts_optimizer_steps(tmp_path: Path) -> None:
    options = {"accumulate_grad_batches": 2, "max_epochs": 4}
    results = on_ranks(masks_of_fit, 2, str(tmp_path), "taylor", 2, options)
    assert_alike(results)
    assert [step for step, _ in results[0][2]] == [2, 3, 4]


def like_one_process(folder: str, ranks: int) -> Any:
    """Fit with the same global batches, however many ranks share them; no batch norm, whose statistics are local."""
    recipe = Recipe(schedule=RISE, criterion=Taylor())
    torch.manual_seed(0)
    model, callback = LinearNet(), PruningCallback(recipe, finalize=False)
    options = {"strategy": strategy(), "devices": ranks} if ranks > 1 else {}
    fit = trainer(Path(folder), callback, precision="64-true", use_distributed_sampler=False, **options)
    images, labels = zip(*loader(5, batch_size=8), strict=True)
    rank = dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", 0))
    share = [[x[rank::ranks], y[rank::ranks]] for x, y in zip(images, labels, strict=True)]
    batches = Resumable()
    batches._batches = share
    fit.fit(model, batches)
    return read(model)


def test_the_masks_are_those_of_one_process_on_the_same_global_batches(tmp_path: Path) -> None:
    alone = like_one_process(str(tmp_path), 1)
    assert sum(int((~mask).sum()) for mask in alone.values())
    for found in on_ranks(like_one_process, 2, str(tmp_path), 2):
        assert all((found[name] == mask).all() for name, mask in alone.items())


class Tampering(AfterStep):
    """Changes a mask on one rank behind the back of all, after some steps."""

    def __init__(self, step: int) -> None:
        super().__init__(lambda t, m: t.global_step == step and t.global_rank == 1 and self._tamper(m))

    def _tamper(self, model: Any) -> None:
        masks.mask_of(model.conv2, "weight")[0].fill_(False)


def tampered(folder: str) -> str:
    try:
        fitted(folder, RECIPES["random"](), 2, Tampering(2))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def test_a_mask_changed_on_one_rank_ends_the_fit_on_all(tmp_path: Path) -> None:
    for text in on_ranks(tampered, 2, str(tmp_path)):
        assert text.startswith("PruningError: the pruning event of step 3 failed: the ")
        assert "conv2.weight differs between rank 0 and rank 1" in text


def without_one(folder: str) -> None:
    """Fit until rank 1 dies; the others must raise, and soon."""

    def die(fit: L.Trainer, _: object) -> None:
        if fit.global_step == 2 and fit.global_rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    start = time.perf_counter()
    try:
        fitted(folder, RECIPES["by data"](), 2, AfterStep(die))
    except Exception:
        assert time.perf_counter() - start < 40
    else:
        raise AssertionError("went on alone")


def test_the_others_end_with_an_error_when_a_rank_dies(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="rank 1: died") as raised:
        on_ranks(without_one, 2, str(tmp_path))
    assert "rank 0" not in str(raised.value)


class Particular(Net):
    """Once it trains, its evaluation fails on the first rank at a width that others do not mind."""

    is_training_now = False

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.is_training_now = True
        return super().training_step(batch, batch_idx)

    def forward(self, images: Tensor) -> Tensor:
        if self.is_training_now and not self.training and self.conv1.out_channels < 8 and dist.get_rank() == 0:
            raise RuntimeError("an unlucky width")
        return super().forward(images)


def shrunk(folder: str, kind: type[Net], options: dict[str, Any]) -> Any:
    recipe = Recipe(schedule=RISE, granularity=Channel(), criterion=Taylor())
    own = strategy(broadcast_buffers=False)
    pruning = {"compact_every_event": True, "finalize": False}
    seen, weights, _ = fitted(folder, recipe, 2, model=kind, strategy=own, pruning=pruning, **options)
    return {step: {name: mask.shape for name, mask in live.items()} for step, live in seen.items()}, weights


@pytest.mark.parametrize("kind", [Net, Particular])
def test_ranks_with_other_buffers_shrink_alike(kind: type[Net], tmp_path: Path) -> None:
    (shapes, weights), (other_shapes, others) = on_ranks(shrunk, 2, str(tmp_path), kind, {})
    assert shapes == other_shapes
    assert (weights["conv1.weight"].shape[0] < 8) == (kind is Net)
    assert weights["conv2.weight"].shape[0] < 8
    assert all((others[name] == weight).all() for name, weight in weights.items())


def stopped_and_resumed(folder: str, name: str) -> Any:
    saving = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    ends = []
    for path in (None, f"{folder}/step=3.ckpt"):
        torch.manual_seed(len(ends))
        model, callback = Net(make_optimizer=momentum_sgd), PruningCallback(RECIPES[name]())
        fit = trainer(Path(folder), callback, *([] if ends else [saving]), strategy=strategy(), devices=2)
        rank = int(os.environ["RANK"])
        batches = Resumable(10)
        batches._batches = batches._batches[rank::2]
        fit.fit(model, batches, ckpt_path=path)
        ends.append({name: p.detach().numpy().copy() for name, p in model.named_parameters()})
    return ends


@pytest.mark.parametrize("name", ["taylor", "repair"])
def test_a_resumed_fit_ends_as_one_never_stopped(name: str, tmp_path: Path) -> None:
    for whole, again in on_ranks(stopped_and_resumed, 2, str(tmp_path), name):
        assert all((again[name] == weight).all() for name, weight in whole.items())
        assert name == "repair" or any((weight == 0).any() for weight in whole.values())


def repairs_of_fit(folder: str) -> Any:
    _, _, callback = fitted(folder, RECIPES["repair"](), 2)
    return [(event.step, event.repairs) for event in callback.events]


def test_the_ranks_repair_on_the_samples_of_all(tmp_path: Path) -> None:
    first, second = on_ranks(repairs_of_fit, 2, str(tmp_path))
    assert first == second
    assert [step for step, _ in first] == [2, 3, 4]  # from step 2 on both have seen 16 samples together
    assert all(len(repairs) == 4 for _, repairs in first)
    assert any(repair.damping is not None for _, repairs in first for repair in repairs)
