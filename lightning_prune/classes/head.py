"""The head of a classifier, found through the channel graph, and its classes removed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from lightning_prune.compaction import Compaction, applied_plan, compact, set_plan
from lightning_prune.errors import CompactionError
from lightning_prune.graph import ChannelGroups, channel_groups
from lightning_prune.model.plain_copy import plain_copy

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
        removals = {
            name.removeprefix("inner."): replace(
                removal, entries=_inside(removal.entries), scales=_inside(removal.scales)
            )
            for name, removal in applied.removals.items()
        }
        attributes = {
            path.removeprefix("inner."): (at.removeprefix("inner."), axis)
            for path, (at, axis) in applied.attributes.items()
        }
        set_plan(small, Compaction(_inside(applied.shapes), removals, attributes))
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
    # axis 1 comes first, as in cross_entropy
    axes = [axis for axis in sorted({1, output.dim() - 1}) if labels is None or output.shape[axis] == len(labels)]
    if not axes:
        raise ValueError(
            f"labels has {len(labels or ())} names, and {type(model).__name__} returns shape {tuple(output.shape)};"
            " give one label for each logit, in their order"
        )
    for index, name in enumerate(labels or ()):
        if not isinstance(name, str):
            raise TypeError(f"labels must be text, got {name!r}; pass [str(label) for label in labels]")
        if name in (labels or ())[:index]:
            raise ValueError(f"label {name!r} stands twice; give each class a label of its own")
    reasons = []
    for axis in axes:
        number = output.shape[axis]
        names = tuple(str(index) for index in range(number)) if labels is None else tuple(labels)
        groups = channel_groups(_Read(model, number, axis), inputs)
        group = next(group for group in groups for member in group.members if member.parameter == "reader")
        is_made = any(member.role == "output" for member in group.members)
        if group.prunable and group.size == number and is_made:
            return Head(axis, names, groups, group.name, inputs)
        reasons.append(group.reason or f"{group.size} of the {number} classes can leave alone")
    raise ValueError(
        f"no head found: the classes of {type(model).__name__} cannot be removed from what makes them ({reasons[0]});"
        " let it return the outputs of a Linear or convolution"
    )


_V = TypeVar("_V")


def _inside(named: Mapping[str, _V]) -> dict[str, _V]:
    """Return what belongs to the model in a :class:`_Read`, by its names there."""
    return {name.removeprefix("inner."): value for name, value in named.items() if name.startswith("inner.")}
