"""While a model trains: each call of it is shown to the teacher, and the difference becomes a term of the loss."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.hooks import RemovableHandle

from lightning_prune.compaction import applied_plan
from lightning_prune.distillation.distillation import Distillation
from lightning_prune.distillation.losses import feature_loss, soft_target_loss
from lightning_prune.distillation.pairs import Kept, Pair, Watched
from lightning_prune.distillation.teacher import Teacher
from lightning_prune.errors import PruningError


@dataclass
class Lesson:
    """One call of the student.

    Args:
        output: a tensor that it returned, at which the term hangs.
        term: gives what the teacher adds to the loss, a scalar. It is asked for when a loss takes it, so that it lies
            outside of a ``torch.utils.checkpoint`` around the call.
    """

    output: Tensor
    term: Callable[[], Tensor]


class Lessons:
    """Watches the calls of a student, asks the teacher the same, and keeps the terms until a loss takes them.

    Args:
        student: the model that is pruned.
        teacher: what teaches it.
        distillation: what is compared.
        pairs: the layers whose features are compared.

    Raises:
        ValueError: the teacher or the student lacks a module to compare.
    """

    def __init__(
        self, student: nn.Module, teacher: Teacher, distillation: Distillation, pairs: Sequence[Pair] = ()
    ) -> None:
        self._student, self._teacher, self._distillation, self._pairs = student, teacher, distillation, tuple(pairs)
        self.pending: list[Lesson] = []
        self.is_listening = False
        self.skips = 0
        self._depth = 0
        self._has_taught = False
        self._active: nn.Module | None = None
        self._taught: tuple[Any, dict[str, list[Tensor]]] = (None, {})
        if distillation.features:
            known = {path for path, _ in teacher.module.named_modules()}
            lacking = [pair.path for pair in pairs if pair.path not in known]
            if not pairs:
                raise ValueError(
                    "Distillation.features compares pruned layers, and no known layer is pruned; set features=0"
                )
            if lacking:
                raise ValueError(
                    "Distillation.features compares layers of the same path, and the teacher"
                    f" {type(teacher.module).__name__} has no {lacking[0]}; set features=0, or leave teacher= out to be"
                    " taught by the dense model"
                )
        self._paths = {module: path for path, module in _places(student, distillation.module)}
        self._kept = Kept(student, applied_plan(teacher.module), pairs)
        self._seen, self._shown = Watched(student, pairs), Watched(teacher.module, pairs)
        self._handles: list[RemovableHandle] = []
        for module in self._paths:
            self._handles.append(module.register_forward_pre_hook(self._before, with_kwargs=True))
            self._handles.append(module.register_forward_hook(self._after))

    @property
    def places(self) -> list[str]:
        """Paths of the modules whose calls are watched; "" is the student itself."""
        return list(self._paths.values())

    @contextmanager
    def listening(self, skips: int = 0) -> Iterator[None]:
        """Watch what is called in here; what was pending before is dropped.

        Args:
            skips: so many calls of the student itself only lead to the real ones.
        """
        self.pending, self.is_listening, self.skips = [], True, skips
        self._active, self._depth = None, 0
        try:
            yield
        finally:
            self.is_listening = False

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if module is self._active:
            self._depth += 1
        if not self.is_listening or not torch.is_grad_enabled() or self._active is not None:
            return
        if module is self._student and self.skips:
            self.skips -= 1
            return
        self._active = module
        with self._teacher.teaching() as teacher:
            self._shown.begin()
            asked = teacher.get_submodule(self._paths[module]) if self._distillation.teacher is None else teacher
            self._taught = (self._ask(asked, args, kwargs), self._shown.end())
        self._seen.begin()

    def _ask(self, teacher: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:  # noqa: ANN401
        """Return what the teacher says to copies of these inputs, which it may change in place."""
        own, named = pytree.tree_map_only(Tensor, Tensor.clone, (args, dict(kwargs)))
        try:
            answer = teacher(*own, **named)
        except (RuntimeError, TypeError, ValueError) as error:
            if self._has_taught or self._distillation.teacher is None or isinstance(error, torch.OutOfMemoryError):
                raise
            tensors = [f"{tuple(tensor.shape)} {tensor.dtype}" for tensor in _tensors((args, dict(kwargs)))]
            raise ValueError(
                f"the teacher {type(teacher).__name__} cannot take the inputs of {type(self._student).__name__},"
                f" {', '.join(tensors) or 'no tensors'}: {error}; give one that takes the same"
            ) from error
        self._has_taught = True
        return answer

    def _after(self, module: nn.Module, args: object, output: object) -> None:
        if module is not self._active:
            return
        if self._depth:
            self._depth -= 1
            return
        self._active, (taught, shown) = None, self._taught
        self._taught = (None, {})
        seen = self._seen.end()
        held = next((tensor for tensor in _tensors(output) if tensor.requires_grad), None)
        if held is not None:
            for path, outputs in seen.items():
                is_trained = any(p.requires_grad for p in self._student.get_submodule(path).parameters())
                if is_trained and not all(tensor.requires_grad for tensor in outputs):
                    raise PruningError(
                        f"Distillation.features compares what {path} returns, which is computed without gradients here,"
                        " as inside checkpoint(…, use_reentrant=True): pass use_reentrant=False, or set features=0"
                    )
            logits = self._logits(output, taught) if self._distillation.weight else None
            self.pending.append(Lesson(held, partial(self._term, logits, seen, shown)))

    def _logits(self, output: object, taught: object) -> tuple[Tensor, Tensor]:
        """Return the logits of both; ours are copied, for what is done to them in place afterwards is no answer."""
        ours, theirs = self._distillation.logits_in(output), self._distillation.logits_in(taught)
        if ours.shape != theirs.shape:
            raise ValueError(
                f"the teacher returns logits of shape {tuple(theirs.shape)} where the model returns"
                f" {tuple(ours.shape)}; give a teacher of the same classes, such as keep_classes(…).model"
            )
        return ours.clone(), theirs

    def _term(
        self,
        logits: tuple[Tensor, Tensor] | None,
        seen: Mapping[str, list[Tensor]],
        shown: Mapping[str, list[Tensor]],
    ) -> Tensor:
        chosen, term = self._distillation, torch.zeros(())
        if logits is not None:
            term = chosen.weight * soft_target_loss(*logits, chosen.temperature, chosen.axis)
        if chosen.features:
            self._kept.refresh()
            features = [
                self._kept.channels(pair, ours, theirs)
                for pair in self._pairs
                if len(seen.get(pair.path, ())) == len(shown.get(pair.path, ()))  # a layer may be dropped at random
                for ours, theirs in zip(seen.get(pair.path, ()), shown.get(pair.path, ()), strict=True)
            ]
            if not features:
                raise PruningError(
                    "Distillation.features compares the outputs of pruned layers, and none is called alike in both"
                    " models: set features=0"
                )
            matching = feature_loss([ours for ours, _ in features], [theirs for _, theirs in features])
            term = term + chosen.features * matching
        return term

    def take(self, loss: Tensor, has_one_loss: bool) -> Tensor | None:
        """Return the mean term of the calls that this loss depends on, which are no longer pending; None: of none.

        Args:
            loss: about to be differentiated.
            has_one_loss: all calls belong to it; otherwise its graph is searched for them.
        """
        if has_one_loss:
            taken = self.pending
        else:
            reached, stack = set(), [loss.grad_fn]
            while stack:
                node = stack.pop()
                if node is not None and node not in reached:
                    reached.add(node)
                    stack.extend(following for following, _ in node.next_functions)
            taken = [lesson for lesson in self.pending if lesson.output.grad_fn in reached]
        self.pending = [lesson for lesson in self.pending if not any(lesson is one for one in taken)]
        return torch.stack([lesson.term() for lesson in taken]).mean() if taken else None

    def check(self, inputs: tuple[Any, ...], named: Mapping[str, Any], output: object) -> None:
        """Compare what both return for an example, before anything trains.

        Args:
            inputs: positional arguments of the student.
            named: its keyword arguments.
            output: what it returns for them.

        Raises:
            ValueError: the teacher returns another shape, or cannot take the example.
        """
        if self._distillation.weight:
            with self._teacher.teaching() as teacher:
                self._logits(output, self._ask(teacher, inputs, dict(named)))

    def remove(self) -> None:
        """Take the hooks away again."""
        for handle in self._handles:
            handle.remove()
        self._seen.remove()
        self._shown.remove()
        self.pending.clear()


def _places(student: nn.Module, path: str | None) -> Iterator[tuple[str, nn.Module]]:
    """Yield (path, module) of the student and of what holds all of its trainable parameters, from the outside in.

    Raises:
        ValueError: there is no submodule of the path that was given.
    """
    modules = dict(student.named_modules())
    if path is not None:
        if path not in modules:
            raise ValueError(f"Distillation.module = {path!r}, and {type(student).__name__} has no such submodule")
        yield path, modules[path]
        return
    whole = {id(parameter) for parameter in student.parameters() if parameter.requires_grad}
    for place, module in modules.items():
        if whole <= {id(parameter) for parameter in module.parameters()}:
            yield place, module


def _tensors(output: object) -> Iterator[Tensor]:
    leaves = pytree.tree_leaves(output)
    return (leaf for leaf in leaves if isinstance(leaf, Tensor))
