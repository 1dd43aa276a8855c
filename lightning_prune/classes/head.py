"""The head of a classifier, found through the channel graph, and its classes removed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from lightning_prune.compaction import Compaction, applied_plan, compact, set_plan
from lightning_prune.errors import CompactionError
from lightning_prune.graph import ChannelGroups, channel_groups
from lightning_prune.model.copies import plain_copy

_M = TypeVar("_M", bound=nn.Module)


class _Read(nn.Module):
    """A classifier whose logits are read by one more layer, so that its classes are channels like any others."""

    def __init__(self, inner: nn.Module, number: int, axis: int) -> None:
        super().__init__()
        self.inner, self._axis = inner, axis
        first = next((p for p in inner.parameters() if p.is_floating_point()), torch.zeros(()))
        # no two weights alike: a removal that mixed classes up would show
        self.reader = nn.Parameter(torch.linspace(0.5, 1.5, number).to(first).view(1, number))

    def forward(self, *inputs: Any) -> Tensor:
        """Return a number for each set of logits."""
        return nn.functional.linear(self.inner(*inputs).transpose(self._axis, -1), self.reader)


@dataclass(frozen=True, eq=False)
class Head:
    """The axis of classes in what a classifier returns, and all that goes with a class.

    Args:
        axis: 1, or the last one.
        labels: of all classes, in the order of the logits.
        groups: channel groups of the model with one more layer behind it.
        group: name of the one whose channels are the classes.
        inputs: an example.
    """

    axis: int
    labels: tuple[str, ...]
    groups: ChannelGroups
    group: str
    inputs: tuple[Any, ...]

    def cut(self, model: _M, kept: Sequence[int]) -> _M:
        """Return a copy that gives the logits of these classes alone, and the same ones.

        Args:
            model: in which the head was found; it stays as it is.
            kept: numbers of the classes, ascending.

        Raises:
            ValueError: the copy would compute something else.
        """
        whole = _Read(plain_copy(model), len(self.labels), self.axis)
        plan = Compaction.from_keep(self.groups, {self.group: kept})
        try:
            compact(whole, plan, example_inputs=self.inputs)
        except CompactionError as error:
            raise ValueError(f"the classes of {type(model).__name__} cannot be removed exactly: {error}") from error
        small, applied = cast(Any, whole.inner), cast(Compaction, applied_plan(whole))
        set_plan(whole, None)
        set_plan(small, _inside(applied))
        return small


def find_head(model: nn.Module, inputs: tuple[Any, ...], labels: Sequence[str] | None) -> Head:
    """Find the layer that makes the logits.

    Args:
        model: in eval mode.
        inputs: an example, positional arguments.
        labels: of the classes; None: their numbers.

    Raises:
        ValueError: the model gives something else than logits of so many classes, or classes cannot leave it.
    """
    with torch.no_grad():
        output = model(*inputs)
    if not isinstance(output, Tensor) or output.dim() < 2:
        got = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"no head found: {type(model).__name__} must return logits (batch, classes, …), got {got}")
    reasons = []
    for axis in _axes(model, output, labels):
        found = _head_at(axis, model, inputs, output, labels)
        if isinstance(found, Head):
            return found
        reasons.append(found)
    raise ValueError(
        f"no head found: the classes of {type(model).__name__} cannot be removed from what makes them ({reasons[0]});"
        " let it return the outputs of a Linear or convolution"
    )


def _axes(model: nn.Module, output: Tensor, labels: Sequence[str] | None) -> list[int]:
    """Return which axes of the output may be that of the classes: axis 1 comes first, as in cross_entropy."""
    axes = [axis for axis in sorted({1, output.dim() - 1}) if labels is None or output.shape[axis] == len(labels)]
    if not axes:
        raise ValueError(
            f"labels has {len(labels or ())} names, and {type(model).__name__} returns shape {tuple(output.shape)};"
            " give one label for each logit, in their order"
        )
    return axes


def _head_at(
    axis: int, model: nn.Module, inputs: tuple[Any, ...], output: Tensor, labels: Sequence[str] | None
) -> Head | str:
    """Return the head whose classes lie along an axis, or why there is none."""
    number = output.shape[axis]
    names = _checked_labels([str(index) for index in range(number)] if labels is None else labels)
    groups = channel_groups(_Read(model, number, axis), inputs)
    group = next(group for group in groups for member in group.members if member.parameter == "reader")
    made_by = [member.parameter for member in group.members if member.role == "output"]
    if not group.prunable or group.size != number or not made_by:
        return group.reason or f"{group.size} of the {number} classes can leave alone"
    return Head(axis, names, groups, group.name, inputs)


def _checked_labels(labels: Sequence[str]) -> tuple[str, ...]:
    names = tuple(labels)
    wrong = next((name for name in names if not isinstance(name, str)), None)
    if wrong is not None:
        raise TypeError(f"labels must be text, got {wrong!r}; pass [str(label) for label in labels]")
    twice = next((name for index, name in enumerate(names) if name in names[:index]), None)
    if twice is not None:
        raise ValueError(f"label {twice!r} stands twice; give each class a label of its own")
    return names


def _inside(plan: Compaction) -> Compaction:
    """Return a plan for what :class:`_Read` holds."""
    removals = {
        name.removeprefix("inner."): replace(removal, entries=_stripped(removal.entries))
        for name, removal in plan.removals.items()
    }
    attributes = {
        path.removeprefix("inner."): (at.removeprefix("inner."), axis) for path, (at, axis) in plan.attributes.items()
    }
    return Compaction(_stripped(plan.shapes), removals, attributes)


_V = TypeVar("_V")


def _stripped(named: Mapping[str, _V]) -> dict[str, _V]:
    return {name.removeprefix("inner."): value for name, value in named.items() if name.startswith("inner.")}
