"""One training run of a comparison, from a seed to its figures."""

import logging
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from lightning_prune.compaction.finalization import finalize
from lightning_prune.data.losses import check_loss, loss_of, trainless_copy
from lightning_prune.data.metrics import MetricLike, evaluate
from lightning_prune.data.passes import Passes, own_random_state, seed_all
from lightning_prune.model import masks
from lightning_prune.model.example import example_of
from lightning_prune.model.summary import as_evaluated, summarize
from lightning_prune.recipe import Recipe
from lightning_prune.study._control import small_dense
from lightning_prune.trainer.callback import PruningCallback
from lightning_prune.trainer.internals import sized_len
from lightning_prune.trainer.packages import NAMES, LightningDataModule, LightningModule, kinds, trainer_class_for

Recipes = Recipe | Sequence[Recipe] | None
"""What one side of a comparison prunes by; None: nothing is pruned."""


@dataclass(frozen=True)
class Contest:
    """What is the same for all sides of a comparison.

    Args:
        make_model: returns a fresh LightningModule; called once for each run, after its seed is set.
        data: a LightningDataModule, (training loader, validation loader), or a function that returns either.
        epochs: of each run.
        metric: of the trained model on the validation data; None: its own loss there.
        trainer: further arguments of each Trainer.
    """

    make_model: Callable[[], LightningModule]
    data: Any
    epochs: int
    metric: MetricLike | None
    trainer: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Training:
    """One run of one side.

    Args:
        name: of the side.
        seed: of weights, data and everything else that is drawn.
        recipes: what it is pruned by.
        shrunk: ("macs" or "params", share): train from scratch a dense network that has so much less; None: the whole.
    """

    name: str
    seed: int
    recipes: Recipes = None
    shrunk: tuple[str, float] | None = None


@dataclass(frozen=True)
class Outcome:
    """What one run came to.

    Args:
        name: of the side.
        seed: of the run.
        metric: on the validation data, after training.
        macs: multiply-accumulates of the trained network; None without an example input.
        effective_macs: of those, the ones with a weight that is not zero.
        parameters: of the trained network.
        bytes: of its parameters and buffers.
        seconds: of the training.
    """

    name: str
    seed: int
    metric: float
    macs: int | None
    effective_macs: int | None
    parameters: int
    bytes: int
    seconds: float


def run(contest: Contest, training: Training) -> Outcome:
    """Train one side with one seed and measure it.

    Changes:
        the global random state is put back; ``make_model`` and the data may change what is theirs.
    """
    with own_random_state(), _quiet():
        seed_all(training.seed)
        model = contest.make_model()
        if training.shrunk is not None:
            small_dense(model, *training.shrunk)
        options: dict[str, Any] = {
            "accelerator": "auto",
            "devices": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
        } | dict(contest.trainer)
        pruning = () if training.recipes is None else (PruningCallback(training.recipes, verbose=False),)
        callbacks = [*pruning, *options.pop("callbacks", ())]
        trainer = trainer_class_for(model)(max_epochs=contest.epochs, callbacks=callbacks, **options)
        train, val, module = loaders_of(contest.data)
        # the model may have drawn any number of times: data and dropout begin alike on all sides
        seed_all(training.seed)
        started = time.perf_counter()
        trainer.fit(model, train_dataloaders=train, val_dataloaders=val, datamodule=module)
        seconds = time.perf_counter() - started
        if masks.is_masked(model):
            finalize(model)
        summary = summarize(model)
        return Outcome(
            name=training.name,
            seed=training.seed,
            metric=measured(model, val if module is None else module.val_dataloader(), contest.metric),
            macs=summary.macs,
            effective_macs=summary.effective_macs,
            parameters=summary.parameters,
            bytes=summary.bytes,
            seconds=seconds,
        )


def measured(model: nn.Module, loader: Iterable[Any], metric: MetricLike | None) -> float:
    """Return the metric of a model on a loader; None: the mean of its own loss over the samples."""
    if metric is not None:
        with as_evaluated(model):
            return evaluate(model, Passes(loader, model), metric)
    check_loss(model, None)
    copied = trainless_copy(model)
    return evaluate(copied, Passes(loader, copied), lambda one, batch: loss_of(one, batch, 0, None))


def loaders_of(data: Any) -> tuple[Any, Any, LightningDataModule | None]:  # noqa: ANN401
    """Return training loader, validation loader and data module: either the pair or the module is there.

    Raises:
        TypeError: the data are neither.
        ValueError: a loader is empty or can be gone through only once.
    """
    given = data
    data = data() if callable(data) and not isinstance(data, kinds("LightningDataModule")) else data
    if isinstance(data, kinds("LightningDataModule")):
        return None, None, data
    if not isinstance(data, tuple | list) or len(data) != 2:
        raise TypeError(
            "data must be a LightningDataModule, (training loader, validation loader), or a function that returns"
            f" either; got {data!r:.80}"
        )
    for what, loader in zip(("training", "validation"), data, strict=True):
        if sized_len(loader) == 0:
            raise ValueError(f"the loader is empty, that of the {what} data; pass one that gives at least one batch")
        if data is given and isinstance(loader, Iterator):
            raise ValueError(
                f"the loader of the {what} data is an iterator, which can be gone through once, and each run needs it:"
                " pass a DataLoader or a list, or a function as data=… that makes the loaders anew"
            )
    return data[0], data[1], None


_OTHER_LENGTH = {
    "accumulate_grad_batches",
    "devices",
    "fast_dev_run",
    "limit_train_batches",
    "max_steps",
    "max_time",
    "num_nodes",
    "overfit_batches",
}
"""Arguments of a Trainer by which a run has another number of steps than batches."""


def steps_of(contest: Contest, train: Iterable[Any] | None) -> int | None:
    """Return the optimizer steps of each run; None where that is not known before.

    Args:
        contest: what each run is like.
        train: loader of the training data; None: a data module will make it.
    """
    size = None if train is None or _OTHER_LENGTH & contest.trainer.keys() else sized_len(train)
    return None if size is None else size * contest.epochs


def check_example(model: nn.Module) -> None:
    """Raise ValueError for a model without an example input, whose multiply-accumulates cannot be counted."""
    if example_of(model) is None:
        raise ValueError(
            f"{type(model).__name__} needs an example_input_array, of the shape that its forward takes: networks"
            " are ranked at equal multiply-accumulates"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what Lightning says about each of many small runs."""
    levels = {name: logging.getLogger(name).level for name in NAMES}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for text in (
                "does not have many workers",
                "number of training batches",
                "GPU available but not used",
                "You passed in a `val_dataloader` but have no `validation_step`",
                "`isinstance.treespec, LeafSpec.` is deprecated",
            ):
                warnings.filterwarnings("ignore", message=f".*{text}")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
