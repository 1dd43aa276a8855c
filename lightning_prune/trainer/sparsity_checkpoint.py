"""Checkpoints that know of sparsity: the best model at the target, and the best one for each size."""

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from lightning_prune import schedules
from lightning_prune.checkpoints import earlier
from lightning_prune.checkpoints import state as checkpoints
from lightning_prune.checkpoints.files import taking_up
from lightning_prune.compaction.finalization import finalize_or_fold
from lightning_prune.documents import typed
from lightning_prune.errors import CheckpointError, PruningError
from lightning_prune.model import masks
from lightning_prune.model.example import Example, example_of
from lightning_prune.model.plain_copy import plain_copy
from lightning_prune.model.summary import measure_macs
from lightning_prune.run.record import history
from lightning_prune.selection.budget import Budget
from lightning_prune.trainer._files import CheckpointFiles
from lightning_prune.trainer.callback import PruningCallback, pruning_callback_of
from lightning_prune.trainer.internals import SelectingCheckpoint, exists
from lightning_prune.trainer.packages import LightningModule, Trainer, rank_zero_info, rank_zero_warn
from lightning_prune.values import check_number

_OF_FIT = ("optimizer_states", "lr_schedulers", "callbacks")
"""What Lightning leaves out of a checkpoint of weights alone (``save_weights_only``, 2.6.6)."""

Against = Literal["sparsity", "params", "macs", "bytes"]


class Point(NamedTuple):
    """What one checkpoint reached: higher is better in both.

    Args:
        quality: the monitored metric; negative of it when lower is better.
        thrift: the sparsity, or the negative of parameters, MACs or bytes.
        is_at_target: whether every recipe had been asked for its target.
    """

    quality: float
    thrift: float
    is_at_target: bool

    def covers(self, other: "Point") -> bool:
        """Say whether this one is at least as good in both."""
        return self.quality >= other.quality and self.thrift >= other.thrift


class SparsityCheckpoint(SelectingCheckpoint):
    """Keeps the best model at the target sparsity, and the Pareto set of the metric against the size.

    A checkpoint belongs to the Pareto set when no other one is at least as good in both. ``best_model_path`` is the
    best by the metric among those at the target, of equals the smaller one, so ``trainer.test(ckpt_path="best")``
    takes that. All other files are deleted. Where the fit finalizes its model, the best one is finalized too, in a file
    of its own beside the masked one: ``best_pruned_path``.

    Args:
        dirpath: as of ModelCheckpoint.
        filename: as of ModelCheckpoint; None: sparsity, metric and size.
        monitor: key of the metric.
        mode: "max" when higher is better, "min" when lower is.
        target: sparsity that a recipe must have been asked for to be at the target; None: the final sparsity of each
            recipe of the Trainer's PruningCallback.
        against: what the metric is set against in the Pareto set: "sparsity" as the callback counts it; the
            number ("params") or the bytes of the parameters that are not pruned; the multiply-accumulates ("macs")
            that they make, which needs ``example_input_array``.
        **options: of ModelCheckpoint, such as ``every_n_train_steps`` or ``save_last``; not ``save_top_k``.

    Example:
        >>> SparsityCheckpoint(monitor="val_acc", mode="max").mode
        'max'
    """

    def __init__(
        self,
        dirpath: str | None = None,
        filename: str | None = None,
        *,
        monitor: str,
        mode: Literal["min", "max"],
        target: float | None = None,
        against: Against = "sparsity",
        **options: Any,
    ) -> None:
        if against not in ("sparsity", "params", "macs", "bytes"):
            raise ValueError(
                f'SparsityCheckpoint.against must be "sparsity", "params", "macs" or "bytes", got {against!r}'
            )
        if target is not None:
            check_number("SparsityCheckpoint.target", target, above=0, below=1, why=": it is the share removed")
        if "save_top_k" in options:
            raise ValueError("SparsityCheckpoint keeps the best at the target and the Pareto set; leave save_top_k out")
        names = dict.fromkeys(("sparsity", monitor, against))
        decimals = {"params": ".0f", "macs": ".0f", "bytes": ".0f"}
        made = "-".join(f"{name.replace('/', '_')}={{{name}:{decimals.get(name, '.4f')}}}" for name in names)
        options.setdefault("auto_insert_metric_name", filename is not None)
        super().__init__(dirpath, filename or made, monitor=monitor, mode=mode, **options)
        self.target, self.against = target, against
        self.points: dict[str, Point] = {}
        self.best_pruned_path = ""
        self._validated_at: tuple[float, ...] | None = None
        self._is_former = False

    @property
    def state_key(self) -> str:
        """The key of its state in a checkpoint; differs where target or ``against`` do."""
        return f"{super().state_key}{self.target}{self.against}"

    @property
    def pareto(self) -> dict[str, Point]:
        """The Pareto set: path -> what that checkpoint reached."""
        return {path: self.points[path] for path in _front(self.points)}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a target that is never asked for, and MACs that cannot be measured."""
        if self not in trainer.checkpoint_callbacks:
            raise PruningError(
                f"{type(self).__name__} was made before pytorch_lightning was imported, so this Trainer takes it for no"
                " checkpoint: make it after the import"
            )
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        callback = pruning_callback_of(trainer)
        if callback is None:
            raise PruningError(
                "SparsityCheckpoint needs a PruningCallback in the same Trainer; without pruning use ModelCheckpoint"
            )
        finals = [schedules.timed(recipe.schedule).final_sparsity for recipe in callback.recipes]
        final = max((1.0 if final is None else final for final in finals), default=1.0)
        if self.target is not None and self.target > final:
            raise ValueError(
                f"SparsityCheckpoint.target {self.target:g} lies above the sparsity {final:g} at which the schedule"
                " ends; lower it, or leave it out to take the schedule's"
            )
        # a callback that needs an example itself takes it from the first forward pass
        has_example = any(recipe.needs_example for recipe in callback.recipes)
        if self.against == "macs" and not has_example and example_of(pl_module) is None:
            raise ValueError(
                f'SparsityCheckpoint(against="macs") needs an example input: set {type(pl_module).__name__}.'
                "example_input_array = torch.zeros(1, …), of the shape that its forward takes"
            )

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note at which sparsity the metric is measured."""
        self._validated_at = _asked(trainer)
        example = example_of(pl_module)
        if self._is_former and example is not None and example.is_learnt:
            now, former = (measure_macs(pl_module, x).total for x in (example, replace(example, is_learnt=False)))
            scaled = {path: point._replace(thrift=point.thrift * now / former) for path, point in self.points.items()}
            self.points, self._is_former = scaled, False

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say so when no checkpoint reached the target."""
        super().on_train_end(trainer, pl_module)
        if not self.best_model_path and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            rank_zero_warn(
                f"SparsityCheckpoint wrote no checkpoint at the target sparsity; the Pareto set holds"
                f" {', '.join(self.pareto) or 'none'}: pass one as ckpt_path, or set a lower target"
            )

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the best model with its masks folded and its channels removed, where the last one is so by now."""
        super().on_fit_end(trainer, pl_module)
        callback, files = pruning_callback_of(trainer), trainer.strategy.checkpoint_io
        if callback is None or not (callback.finalize and callback.is_done) or not isinstance(files, CheckpointFiles):
            return
        written = ""
        best = self.best_model_path
        # one of a checkpoint that was resumed from may lie anywhere
        if trainer.is_global_zero and best and self._is_inside(best) and exists(best):
            try:
                checkpoint = files.load_own(best)
                # with save_weights_only the callback's part is left out, and nothing tells what is masked
                if checkpoints.KEY in checkpoint:
                    root, ending = os.path.splitext(best)
                    files.save_checkpoint(_finalized(pl_module, checkpoint, callback), f"{root}-pruned{ending}")
                    written = f"{root}-pruned{ending}"
                    rank_zero_info(f"the pruned model of the best checkpoint is in {written}")
            except (PruningError, RuntimeError) as error:  # the training is done, and the masked file is good
                rank_zero_warn(
                    f"the best checkpoint {best} could not be finalized: {error}. It is there with its masks: load it"
                    " and call finalize(model, example_inputs)"
                )
        self.best_pruned_path = trainer.strategy.broadcast(written)
        history(pl_module).best_checkpoint = Path(self.best_pruned_path) if self.best_pruned_path else None

    def sizes(self, trainer: Trainer) -> dict[str, Tensor]:
        """Return what the metric is set against, and the sparsity, for file names."""
        callback, model = pruning_callback_of(trainer), trainer.lightning_module
        sparsity = 0.0 if callback is None else callback.sparsity
        values = {"sparsity": sparsity, self.against: sparsity}
        if self.against != "sparsity":
            first = masks.first_names(model)
            live = {name: mask for name, mask in masks.read(model).items() if first[name] == name}
            densities = {name: int(torch.count_nonzero(mask)) / max(mask.numel(), 1) for name, mask in live.items()}
            values[self.against] = _budget(model, self.against).remaining(densities)
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}

    def select(self, trainer: Trainer, values: dict[str, Tensor]) -> None:
        """Keep this state when it is the best at the target or belongs to the Pareto set."""
        metric, callback = values.get(self.monitor or ""), pruning_callback_of(trainer)
        # a metric from before an event or a rollback says nothing of the model as it is now
        if metric is None or self._validated_at not in (None, _asked(trainer)):
            return
        if callback is not None and callback.is_on_trial:
            return  # what may yet be rolled back is no model to hand out
        quality = float(metric) if self.mode == "max" else -float(metric)
        cost = float(values[self.against])
        thrift = cost if self.against == "sparsity" else -cost
        point = trainer.strategy.broadcast(Point(quality, thrift, self._is_at_target(callback)))
        best = self.points.get(self.best_model_path)
        is_best = point.is_at_target and (best is None or point[:2] > best[:2])
        is_new = not any(old.covers(point) for old in self.points.values())
        if math.isfinite(point.quality) and (is_best or is_new):
            self._keep(trainer, point, is_best, values)

    def _is_at_target(self, callback: PruningCallback | None) -> bool:
        if callback is None or callback.is_done:
            return callback is not None
        run = callback.run
        finals = [] if run is None else [pruner.schedule.final for pruner in run.pruners]
        wanted = finals if self.target is None else [min(self.target, final) for final in finals]
        asked = [] if run is None else run.asked.values()
        return bool(asked) and all(a >= w - 1e-9 for a, w in zip(asked, wanted, strict=True))

    def _keep(self, trainer: Trainer, point: Point, is_best: bool, values: dict[str, Tensor]) -> None:
        path = self.path_for(trainer, values)
        before = self.points, self.best_k_models, self.best_model_path, self.best_model_score, self.current_score
        self.current_score = values[self.monitor or ""]
        if is_best:
            self.best_model_path, self.best_model_score = path, self.current_score
        points = {**self.points, path: point}
        kept = _front(points) | {self.best_model_path}
        self.points = {name: reached for name, reached in points.items() if name in kept}
        scores = {**self.best_k_models, path: self.current_score}
        self.best_k_models = {name: score for name, score in scores.items() if name in kept}
        if error := self._try_to_save(trainer, path):
            self.points, self.best_k_models, self.best_model_path, self.best_model_score, self.current_score = before
            rank_zero_warn(f"{path} could not be written: {error}. Training goes on; free space on the disk")
            return
        for name in before[0].keys() - self.points.keys():
            self.delete(trainer, name, path)

    def _try_to_save(self, trainer: Trainer, path: str) -> str:
        """Write the file; return what went wrong, on every process, or ""."""
        error = ""
        try:
            self.save(trainer, path)
            if trainer.is_global_zero and "://" not in path and not Path(path).exists():
                error = "the disk refused it"  # the pruning callback keeps such an error from ending the fit
        except OSError as failure:
            error = str(failure)
            trainer.strategy.barrier("Trainer.save_checkpoint")  # where the others wait
        has_failed = trainer.strategy.reduce_boolean_decision(bool(error), all=False)
        return (error or "another process failed") if has_failed else ""

    def state_dict(self) -> dict[str, Any]:
        """Return the state, the points of the kept files with it."""
        points = {path: list(point) for path, point in self.points.items()}
        return super().state_dict() | {"points": points, "is_former": self._is_former}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the state; files in another folder are left alone, as ModelCheckpoint does."""
        with taking_up(f"its {type(self).__name__}"):
            super().load_state_dict(state_dict)
            if state_dict["dirpath"] == self.dirpath:
                points = state_dict["points"].items()
                self.points = {path: Point(float(q), float(t), bool(at)) for path, (q, t, at) in points}
                # states without this word counted MACs of all samples of an example that was learnt
                self._is_former = self.against == "macs" and state_dict.get("is_former", True)
            # what leaves the Pareto set is deleted: a checkpoint of someone else's must not choose the file
            typed(str, self.best_model_path)
            for path in (*self.points, *self.best_k_models, self.last_model_path, self.kth_best_model_path):
                if typed(str, path) and not self._is_inside(path):
                    raise CheckpointError(
                        f"the checkpoint's {type(self).__name__} names {path!r:.200}, which lies outside of its folder"
                        f" {self.dirpath}: it is damaged, or not of yours; take another one"
                    )

    def _is_inside(self, path: str) -> bool:
        """Whether a file lies in the folder that this one writes to."""
        if "://" in path:
            return ".." not in path and path.startswith(f"{self.dirpath}/")
        return Path(os.path.abspath(self.dirpath or "")) in Path(os.path.abspath(path)).parents


def _finalized(model: LightningModule, checkpoint: dict[str, Any], pruning: PruningCallback) -> dict[str, Any]:
    """Return a checkpoint with its model finalized, and without the state of a fit that would go on with it."""
    copied = plain_copy(model)
    earlier.forget(copied)
    checkpoints.restore(copied, checkpoint, strict=model.strict_loading)
    finalize_or_fold(copied)
    run = {"is_done": True, "recipes": [recipe.describe() for recipe in pruning.recipes], "guard": None}
    run["events"] = checkpoint[checkpoints.KEY].get("run", {}).get("events", [])
    entry = {**checkpoint[checkpoints.KEY], **checkpoints.describe(copied), "run": run}
    held = {name: value for name, value in checkpoint.items() if name not in _OF_FIT}
    return {**held, "state_dict": copied.state_dict(), checkpoints.KEY: entry}


def _front(points: dict[str, Point]) -> set[str]:
    """Return the paths whose point no other one covers."""
    return {
        path
        for path, point in points.items()
        if not any(other.covers(point) for name, other in points.items() if name != path)
    }


def _asked(trainer: Trainer) -> tuple[float, ...]:
    """Return the sparsity that each recipe was asked for last; () when there is no run."""
    callback = pruning_callback_of(trainer)
    return () if callback is None or callback.run is None else tuple(callback.run.asked.values())


def _budget(model: nn.Module, against: str) -> Budget:
    """Return what the number, MACs or bytes of the parameters come to, and the part of each."""
    if against == "macs":
        macs = measure_macs(model, example_of(model) or Example())
        return Budget(macs.total, macs.of_parameters(masks.dense_parameters(model)))
    first = masks.first_names(model)
    sizes = {
        name: float(tensor.numel() * (tensor.element_size() if against == "bytes" else 1))
        for name, tensor in masks.dense_parameters(model).items()
        if first[name] == name
    }
    return Budget(sum(sizes.values()), sizes)
