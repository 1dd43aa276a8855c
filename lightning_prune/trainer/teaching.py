"""Distillation in a Lightning run: the term joins the loss on its way to the backward pass, in either optimization."""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lightning_prune.checkpoints import state as checkpoints
from lightning_prune.checkpoints.files import taking_up
from lightning_prune.distillation import Distillation, Lessons, Pair, Teacher, find_pairs
from lightning_prune.documents import typed
from lightning_prune.errors import CheckpointError, PruningError
from lightning_prune.model.masks import dense_names
from lightning_prune.model.summary import as_evaluated
from lightning_prune.selection import Units
from lightning_prune.trainer._files import CheckpointFiles
from lightning_prune.trainer._preconditions import example_on_device
from lightning_prune.trainer.internals import intercept, trust
from lightning_prune.trainer.packages import LightningModule, Trainer

Saved = Mapping[str, Any]
"""What :meth:`Distilling.state_dict` returned."""


class Distilling:
    """Carries out a :class:`Distillation` in the fits of one model.

    While a fit runs, ``training_step`` and ``backward`` of the strategy are ours: the first tells when to watch the
    model, the second adds the term. So a loss is distilled on its way to the backward pass, be it by Lightning's own
    loop or by ``manual_backward``, below gradient accumulation, the gradient scaler and DDP.

    Args:
        distillation: what is to be taught.
    """

    def __init__(self, distillation: Distillation) -> None:
        self.distillation = distillation
        self.term: Tensor | None = None
        self._teacher: Teacher | None = None
        self._pairs: list[Pair] = []
        self._lessons: Lessons | None = None
        self._undo: list[Callable[[], object]] = []
        self._has_joined = False

    def start(
        self,
        trainer: Trainer,
        model: LightningModule,
        units: Sequence[Units],
        saved: Saved | None,
        files: CheckpointFiles,
    ) -> None:
        """Take the teacher, or bring back the one of a run that was stopped, and begin to teach.

        Args:
            trainer: of the fit.
            model: as it is before the first event, or as a checkpoint left it.
            units: what the recipes may remove; none where pruning is done.
            saved: of the checkpoint that the fit goes on from.
            files: reads what lies beside that checkpoint.

        Raises:
            CheckpointError: the teacher of the stopped run is not there.
            ValueError: the teacher does not fit the model.
        """
        self.stop()
        if self._teacher is None or (saved is not None and saved["digest"] != self._teacher.digest):
            self._teacher = self._find_teacher(trainer, model, saved, files)
        if saved is not None:
            with taking_up("its teacher"):
                self._pairs = [Pair(*typed(tuple[str, str, int, int], values)) for values in saved["pairs"]]
                for pair in self._pairs:
                    model.get_submodule(pair.path)
                    dense_names(model)[pair.tensor].shape[pair.axis]
        if not self._pairs and self.distillation.features:
            self._pairs = find_pairs(model, units)
        lessons = self._lessons = Lessons(model, self._teacher, self.distillation, self._pairs)
        self._undo.append(lessons.remove)
        try:
            example = example_on_device(model)
            if self.distillation.teacher is not None and self.distillation.module is None and example is not None:
                with torch.no_grad(), as_evaluated(model):
                    lessons.check(example.args, example.kwargs, example(model))
        except Exception:
            self.stop()
            raise
        watched, taught = partial(self._training_step, trainer, model), partial(self._backward, trainer, model)
        self._undo.append(intercept(trainer.strategy, "training_step", watched))
        self._undo.append(intercept(trainer.strategy, "backward", taught))

    def _find_teacher(
        self, trainer: Trainer, model: LightningModule, saved: Saved | None, files: CheckpointFiles
    ) -> Teacher:
        """Return the teacher: the given one, that of the file beside the checkpoint, or the model as it is."""
        if self.distillation.teacher is not None:
            given = Teacher(self.distillation.teacher, like=model)
            if saved is not None and given.digest != saved["digest"]:
                raise CheckpointError(
                    "Distillation.teacher is another one than taught the run of the checkpoint: give the same, with"
                    " the same weights, or go on with this one: PruningCallback(…, resume_with_other_recipe=True)"
                )
            return given
        if saved is None:
            return Teacher(model)
        if saved["file"] is None:
            raise CheckpointError(
                "the run of the checkpoint was taught by a teacher that was given: give the same one,"
                " Distillation(teacher=…)"
            )
        if not re.fullmatch(r"teacher-[0-9a-f]{16}\.ckpt", str(saved["file"])):
            raise CheckpointError(
                f"the checkpoint names {saved['file']!r:.80} as the file of its teacher, which none is called: it is"
                " damaged, or not of ours; take another one"
            )
        path = files.beside(trainer.ckpt_path, saved["file"])
        try:
            # it holds tensors and plain values, whatever the checkpoint itself is read with
            contents = files.load_checkpoint(path, **trust(files.inner.load_checkpoint, is_trusted=False))
        except FileNotFoundError as error:
            raise CheckpointError(
                f"the run of the checkpoint was taught by its dense model, which was written beside it, and {path} is"
                " not there: bring that file along, or give the dense model: Distillation(teacher=…)"
            ) from error
        with taking_up("its teacher"):
            return Teacher.restored(model, contents, saved["digest"])

    def _training_step(
        self, trainer: Trainer, model: LightningModule, original: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:  # noqa: ANN401
        """Run the step while the model is watched; under DDP its first call is the wrapper's way to the step."""
        lessons, strategy = self._lessons, trainer.strategy
        if lessons is None:
            return original(*args, **kwargs)
        self._has_joined = False
        with lessons.listening(skips=int(strategy.model is not strategy.lightning_module)):
            output = original(*args, **kwargs)
        if lessons.pending and not (model.automatic_optimization or self._has_joined):
            raise PruningError(
                f"{type(model).__name__}.training_step called the model and no manual_backward, so the teacher's term"
                " never reached a loss: call self.manual_backward(loss) in place of loss.backward()"
            )
        return output

    def _backward(
        self,
        trainer: Trainer,
        model: LightningModule,
        original: Callable[..., Any],
        closure_loss: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """Differentiate the loss with the term; Lightning has divided it where gradients accumulate."""
        lessons, is_automatic = self._lessons, model.automatic_optimization
        term = None if lessons is None else lessons.take(closure_loss, has_one_loss=is_automatic)
        if term is None and is_automatic and lessons is not None:
            raise PruningError(
                f"{type(model).__name__}.training_step called none of the modules whose outputs could be compared with"
                f" the teacher's ({', '.join(place or 'self' for place in lessons.places)}): let it call self(…), or"
                " name the submodule that it calls: Distillation(module=…)"
            )
        self._has_joined = True
        if term is not None:
            self.term = term.detach()
            share = 1 / trainer.accumulate_grad_batches if is_automatic else 1.0
            closure_loss = (1 - self.distillation.weight) * closure_loss + share * term
        return original(closure_loss, *args, **kwargs)

    def stop(self) -> None:
        """Let go of model and strategy; the teacher stays for the next fit."""
        while self._undo:
            self._undo.pop()()
        self._lessons = None

    def state_dict(self) -> dict[str, Any] | None:
        """Return what a checkpoint says of the teacher, which it does not hold: plain values; None before the fit."""
        if self._teacher is None:
            return None
        return {
            "settings": self.distillation.describe(),
            "digest": self._teacher.digest,
            "file": None if self.distillation.teacher is not None else f"teacher-{self._teacher.digest[:16]}.ckpt",
            "pairs": [pair.as_state() for pair in self._pairs],
        }

    def companion(self, checkpoint: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
        """Return the file that a checkpoint cannot do without, its name and contents; None where it needs none."""
        saved = checkpoint.get(checkpoints.KEY, {}).get("distillation")
        if saved is None or saved["file"] is None or self._teacher is None:
            return None
        return saved["file"], self._teacher.state()


@taking_up("its teacher")
def take_up(distillation: Distillation | None, entry: Saved, is_other_allowed: bool) -> Saved | None:
    """Return what a checkpoint says of the teacher that this fit goes on with; None: it begins with one of its own.

    Args:
        distillation: of this fit.
        entry: what stands under :data:`checkpoints.KEY` in the checkpoint.
        is_other_allowed: go on where it differs from that of the checkpoint.

    Raises:
        CheckpointError: it differs; or the model of the checkpoint may be pruned, and no teacher is known.
    """
    saved = entry.get("distillation")
    has_run = entry.get("run") is not None
    before = {} if saved is None else {**saved["settings"]}
    if saved is not None and not {"digest", "file", "pairs"} <= saved.keys():
        raise CheckpointError("what the checkpoint says of its teacher is damaged: take another one")
    now = {} if distillation is None else distillation.describe()
    if before != now and has_run and not is_other_allowed:
        lines = [f"{key} was {before.get(key)}, is {now.get(key)}" for key in before | now]
        changed = [line for line, key in zip(lines, before | now, strict=True) if before.get(key) != now.get(key)]
        raise CheckpointError(
            "the checkpoint is of a run with another distillation:\n" + "\n".join(changed) + "\nresume with the one"
            " that it has, or go on with this one from here: PruningCallback(…, resume_with_other_recipe=True)"
        )
    if distillation is None or (distillation.teacher is not None and is_other_allowed):
        return None
    if saved is None and has_run and distillation.teacher is None:
        raise CheckpointError(
            "the run of the checkpoint has begun to prune without a teacher, so its dense model is not known: give it,"
            " Distillation(teacher=…)"
        )
    return saved
