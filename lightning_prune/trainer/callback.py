"""When to prune in a Lightning run: each hook hands over to the fit that is under way; no maths."""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from torch.optim import Optimizer

from lightning_prune.checkpoints import state as checkpoints
from lightning_prune.distillation import Distillation
from lightning_prune.errors import PruningError
from lightning_prune.guard import Guard, Trial
from lightning_prune.model import masks
from lightning_prune.recipe import Recipe
from lightning_prune.run.event import Event
from lightning_prune.run.record import Record
from lightning_prune.run.run import PruningRun
from lightning_prune.selection.needs import Each
from lightning_prune.trainer._course import Course
from lightning_prune.trainer._files import CheckpointFiles
from lightning_prune.trainer._networks import Networks
from lightning_prune.trainer._resume import attended
from lightning_prune.trainer.fit import Fit
from lightning_prune.trainer.internals import count_epoch, intercept
from lightning_prune.trainer.packages import AnyCallback, LightningModule, Trainer
from lightning_prune.trainer.strategy import check_can_shrink, check_strategy, is_sharding
from lightning_prune.values import check_bool


class PruningCallback(AnyCallback):
    """Prunes a LightningModule while it trains, and leaves plain, smaller modules at the end of the fit.

    A copy of it, deep or pickled, has its arguments and results, and begins anew with whatever model it meets.

    Args:
        recipe: one recipe, or several with different targets.
        guard: puts an event back when the validation metric falls too far after it; None: none does.
        finalize: fold the masks and remove the channels at the normal end of the fit. False: the masks stay, and
            :func:`lightning_prune.finalize` does it later.
        distillation: lets the dense model, or another teacher, teach this one in every step of the fit; None: nobody
            does.
        compact_every_event: remove the channels at each event instead of carrying masks to the end, so that training
            itself gets faster; on one device and under DDP.
        resume_with_other_recipe: let this recipe go on from here where a checkpoint is of a run with another one,
            which is refused otherwise.
        verbose: print a line for each event and a table at the end of the fit, past the progress bar and on the first
            process alone. False: both go to the log, at INFO.

    Example:
        >>> from lightning_prune.schedules import OneShot
        >>> callback = PruningCallback(Recipe(schedule=OneShot(0.5, begin_step=30)))
    """

    def __init__(
        self,
        recipe: Recipe | Sequence[Recipe],
        *,
        guard: Guard | None = None,
        distillation: Distillation | None = None,
        finalize: bool = True,
        compact_every_event: bool = False,
        resume_with_other_recipe: bool = False,
        verbose: bool = True,
    ) -> None:
        self.recipes: tuple[Recipe, ...] = (recipe,) if isinstance(recipe, Recipe) else _several(recipe)
        if not isinstance(guard, Guard | None):
            raise TypeError(
                f'PruningCallback.guard takes a Guard, such as Guard("val_acc", "max", 0.01), got {guard!r}'
            )
        if not isinstance(distillation, Distillation | None):
            raise TypeError(
                f"PruningCallback.distillation takes a Distillation, such as Distillation(temperature=4.0, weight=0.5),"
                f" got {distillation!r}"
            )
        for name, value in (
            ("finalize", finalize),
            ("compact_every_event", compact_every_event),
            ("resume_with_other_recipe", resume_with_other_recipe),
            ("verbose", verbose),
        ):
            check_bool(f"PruningCallback.{name}", value)
        self.guard = guard
        self.distillation = distillation
        self.finalize = finalize
        self.compact_every_event = compact_every_event
        self.resume_with_other_recipe = resume_with_other_recipe
        self.verbose = verbose
        self.is_from_module = False
        self._record = Record()
        self._course: Course | None = None
        self._fit: Fit | None = None
        self._undo = ExitStack()

    def __getstate__(self) -> dict[str, Any]:
        """Leave the model and what holds it out of a copy, deep or pickled."""
        return self.__dict__ | {"_course": None, "_fit": None, "_undo": ExitStack()}

    @property
    def events(self) -> list[Event]:
        """The events that stand, in order; of a resumed run, those of its checkpoint first."""
        return self._record.events

    @property
    def sparsity(self) -> float:
        """The sparsity reached so far, in what the recipe counts."""
        return self._record.sparsity

    @property
    def trials(self) -> list[Trial]:
        """What the guard has judged: events that were kept and events that were rolled back, in order."""
        return self._record.trials

    @property
    def is_done(self) -> bool:
        """Whether the model is finalized, so that nothing prunes it any more."""
        return self._record.is_done

    @property
    def networks(self) -> tuple[LightningModule | None, ...]:
        """A network for each need of an :class:`~lightning_prune.Each`, in their order: compact and in eval mode.

        It is the model as it was when it met the need and had been trained until the next event, or the end of the fit,
        made anew at each look. None where it has not come to that; () before the first fit, in a copy, and where the
        recipes make one network.
        """
        return () if self._course is None else self._course.networks.made(self._course.model)

    @property
    def run(self) -> PruningRun | None:
        """The run on the model that was fitted last; None before the first fit and in a copy."""
        return None if self._course is None else self._course.run

    @property
    def is_on_trial(self) -> bool:
        """Whether the guard has yet to judge the last event."""
        guarding = None if self._course is None else self._course.guarding
        return guarding is not None and guarding.watch.trial is not None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Attach the masks, before the strategy wraps the model and weights load.

        A module with a ``setup`` or ``configure_model`` of its own may make layers or loaders there, which run after
        this hook: it gets its masks before the weights of a checkpoint load, or else when the fit starts.
        """
        self._check(trainer, pl_module)
        self._leave()  # a setup that failed had no teardown
        files = CheckpointFiles(trainer.strategy)
        self._fit = self._begin(trainer, pl_module, files) if stage == "fit" else None
        self._undo = attended(trainer, pl_module, self._fit, files)
        if self._fit is not None:
            self._fit.bind_early()

    def _check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse what cannot work, whatever the Trainer is about to do."""
        count = sum(isinstance(callback, PruningCallback) for callback in trainer.callbacks)  # type: ignore[attr-defined]
        if count > 1:
            raise PruningError(
                f"the Trainer has {count} PruningCallbacks; keep one and give it all recipes: PruningCallback([a, b])"
            )
        check_strategy(trainer, pl_module)
        if self.compact_every_event:
            check_can_shrink(self.recipes, trainer)
        if is_sharding(trainer) and any(isinstance(recipe.need, Each) for recipe in self.recipes):
            raise PruningError(
                "Each keeps whole networks, and weights are sharded: train with DDPStrategy or on one device"
            )
        if self.distillation is not None and is_sharding(trainer):
            raise PruningError("Distillation does not work on sharded weights: train with DDPStrategy or on one device")

    def _begin(self, trainer: Trainer, pl_module: LightningModule, files: CheckpointFiles) -> Fit:
        """Return the fit of this model, which goes on where an earlier one of it has ended."""
        if self._course is None or self._course.model is not pl_module:
            self._record = Record()
            self._course = Course(pl_module, self._record, networks=Networks(self.recipes))
        return Fit(trainer, self._course, self, files)

    def _leave(self) -> None:
        if self._fit is not None:
            self._fit.stop()
        self._fit = None
        self._undo.close()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fit the run to the weights that have loaded."""
        if self._fit is not None:
            self._fit.start()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse what this run cannot complete; take hold of the optimizers; run an event due before the first step."""
        if self._fit is not None:
            self._fit.start_training()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Show the gradients to the criteria that watch them: unscaled, before clipping."""
        if self._fit is not None:
            self._fit.observe(optimizer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Run the event that is due, after the optimizer step and before a checkpoint of this batch is written."""
        if self._fit is not None:
            self._fit.end_batch()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the guard see what has been logged before the validation, which says nothing of it."""
        if self._fit is not None:
            self._fit.look()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the guard judge the event on trial; put back what failed."""
        if self._fit is not None:
            self._fit.judge()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say so when the run stopped short of its target; finalize after the hooks of everybody else."""
        if self._fit is not None:
            self._fit.stop_teaching()
            run = self._fit.conclude()
            if run is not None:
                finish = partial(self._fit.finish_after, run)
                self._undo.callback(intercept(trainer.strategy, "on_train_end", finish))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finalize where the checkpoint was the last of its run: Lightning then leaves the training out altogether."""
        if self._fit is not None:
            self._fit.finish_untrained()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let go of model and optimizers; the model stays masked, so that the run can be resumed."""
        self._leave()  # Lightning calls no teardown after an exception

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of model and strategy."""
        self._leave()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Write what a resume needs beside the weights: plain values and tensors, no pickled modules."""
        entry = checkpoints.describe(pl_module)
        entry |= {"distillation": None} if self._course is None else self._course.state_dict(trainer, self)
        checkpoint[checkpoints.KEY] = entry
        if trainer.training or trainer.validating:
            count_epoch(trainer, checkpoint)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take up a run that was stopped; the weights are loaded already."""
        if is_sharding(trainer):
            masks.put(pl_module, checkpoint.get(checkpoints.KEY, {}).get("masks", {}))
            masks.zero_pruned(pl_module)
        if self._fit is not None:
            self._fit.load(checkpoint)


def pruning_callback_of(trainer: Trainer) -> PruningCallback | None:
    """Return the Trainer's PruningCallback, given to it or by its module; None: it prunes nothing."""
    return next((c for c in trainer.callbacks if isinstance(c, PruningCallback)), None)  # type: ignore[attr-defined]


def _several(recipes: Sequence[Recipe]) -> tuple[Recipe, ...]:
    several: tuple[Any, ...] = tuple(recipes) if isinstance(recipes, list | tuple) else (recipes,)
    for recipe in several:
        if not isinstance(recipe, Recipe):
            raise TypeError(f"PruningCallback takes a Recipe or a list of them, got {recipe!r}")
    if sum(isinstance(recipe.need, Each) for recipe in several) > 1:
        raise ValueError("PruningCallback got several recipes that make a network for each need: let one of them do it")
    if not several:
        raise ValueError("PruningCallback got an empty list of recipes; pass at least one")
    return several
