"""The channel groups of a model: which channels of which layers can only be removed together."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, overload

import numpy as np
from torch import nn

from lightning_prune.graph._scales import Scale
from lightning_prune.graph._units import Signature, scales_of, signatures, sizes_held
from lightning_prune.graph.axes import NOT_A_CHANNEL
from lightning_prune.graph.flow import Flow
from lightning_prune.graph.rules.table import rule_of
from lightning_prune.graph.trace import trace
from lightning_prune.model.computed import shown_as
from lightning_prune.model.example import Inputs
from lightning_prune.model.state import State, state_in
from lightning_prune.tables import Table, Tabular


@dataclass(frozen=True, eq=False)
class Member:
    """The entries of one parameter axis that belong to a channel group.

    Attributes:
        parameter: dense name of the parameter or buffer; its first name if it has several.
        axis: the axis along which entries belong to channels.
        indices: entries of each channel along the axis, ascending; shape (size, entries per channel), int64.
        role: "output" for what is made with the channel (weight rows, bias, batch-norm entries), "input" for the slice
            of a consumer that reads it; "unmasked" for what goes along and may not be zero before, such as the
            direction of a weight-normalised weight, which is divided by its norm.
    """

    parameter: str
    axis: int
    indices: np.ndarray
    role: Literal["output", "input", "unmasked"]

    @property
    def offset(self) -> int:
        """The first entry of the first channel."""
        return int(self.indices[0, 0])


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Channels that are removed one by one, each from all members at once.

    Attributes:
        name: path of the first module that makes the channels.
        size: number of channels.
        members: everything that loses entries when a channel goes.
        prunable: whether removing a channel computes the same as masking it, or ``inexact`` says what it changes.
        reason: why not, in words; "" for a prunable group.
        inexact: the normalisation over the channels that removing one changes, in words; "" where nothing changes.
        scales: dense name of a parameter that is multiplied when channels go, so that a mean over those that are left
            changes nothing -> how. The weight of an RMS norm is one.
    """

    name: str
    size: int
    members: tuple[Member, ...]
    prunable: bool
    reason: str
    inexact: str = ""
    scales: Mapping[str, Scale] = field(default_factory=dict)


class ChannelGroups(Tabular, Sequence[ChannelGroup]):
    """The channel groups of a model in the order of its graph; printed, and shown in a notebook, they are a table.

    Attributes:
        shapes: shape of every parameter and buffer in the graph, by dense name.
        conv_groups: weights of grouped convolutions that lose whole convolution groups along axis 0, so that the
            ``groups`` of the module shrinks in proportion.
        unknown: operators without a rule; the axes that touch them are not prunable.
        attributes: path of a module's attribute that holds a size, e.g. ``attention.num_heads`` -> (dense name, axis)
            to whose length it is proportional.
        state: buffers that a forward writes, with what they hold now.
    """

    def __init__(
        self,
        groups: Sequence[ChannelGroup],
        shapes: Mapping[str, tuple[int, ...]],
        conv_groups: frozenset[str] = frozenset(),
        unknown: tuple[str, ...] = (),
        attributes: Mapping[str, tuple[str, int]] | None = None,
        state: Sequence[State] = (),
    ) -> None:
        self._groups = tuple(groups)
        self._by_name = {group.name: group for group in groups}
        self.shapes = dict(shapes)
        self.conv_groups = conv_groups
        self.unknown = unknown
        self.attributes = dict(attributes or {})
        self.state = tuple(state)

    def __len__(self) -> int:
        return len(self._groups)

    def __iter__(self) -> Iterator[ChannelGroup]:
        return iter(self._groups)

    @overload
    def __getitem__(self, index: int | str) -> ChannelGroup: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[ChannelGroup]: ...
    def __getitem__(self, index: int | str | slice) -> ChannelGroup | Sequence[ChannelGroup]:
        if not isinstance(index, str):
            return self._groups[index]
        if index not in self._by_name:
            raise KeyError(f"no channel group is called {index!r}; there are {', '.join(self._by_name) or 'none'}")
        return self._by_name[index]

    def __repr__(self) -> str:
        prunable = sum(group.prunable for group in self)
        return f"<ChannelGroups: {len(self)} channel groups, {prunable} prunable>"

    def table(self) -> Table:
        """Return a row for each channel group, with what goes along and why it stays."""
        head = ("channel group", "size", "members (parameter, axis, offset)", "prunable", "why not")
        rows = [
            (
                group.name,
                str(group.size),
                "\n".join(f"({member.parameter}, {member.axis}, {member.offset})" for member in group.members),
                "no" if not group.prunable else "inexact" if group.inexact else "yes",
                group.reason or group.inexact,
            )
            for group in self
        ]
        return Table(head, rows, words=len(head), note="\n".join(f"state: {each}" for each in self.state))


def channel_groups(
    model: nn.Module,
    example_inputs: Inputs,
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    allow_inexact: bool = False,
    attention: Literal["heads", "width"] = "heads",
) -> ChannelGroups:
    """Find the channels of a model that can be removed, and what has to go with each.

    The model is traced by torch.export on a copy in eval mode with its masks folded; the caller's model, its mode and
    the random generators are left as they are. A channel is prunable when zeroing every member's entries computes
    exactly what removing them computes. An operator without a rule makes the axes that touch it not prunable.

    Args:
        model: any module that torch.export accepts; also a LightningModule, also a masked one.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments of ``forward``.
        example_kwargs: further keyword arguments.
        allow_inexact: let channels go over which a normalisation runs (layer, group and RMS norm, a mean that keeps
            its axis); each such group says so in ``inexact``.
        attention: what goes of an attention where both can: whole heads, or the width of query, key and value in all
            heads alike. Where one cannot the other does.

    Returns:
        All channel groups, prunable or not.

    Raises:
        ValueError: attention is another word.
        GraphError: torch.export refuses the model or these inputs.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> groups = channel_groups(net, torch.zeros(1, 4))
        >>> [(group.name, group.size, group.reason) for group in groups]
        [('0', 8, ''), ('0 (input)', 4, 'input of the model'), ('2', 2, 'model output')]
    """
    if attention not in ("heads", "width"):
        raise ValueError(f"attention must be 'heads' or 'width', got {attention!r}")
    flow = Flow(trace(model, example_inputs, example_kwargs), rule_of, allow_inexact, attention)
    while True:
        flow.solve()
        refused, found = len(flow.refused), signatures(flow)
        scales = scales_of(flow, found)
        if refused == len(flow.refused):
            break
    for operator in flow.unknown:
        warnings.warn(
            f"lightning_prune has no rule for {operator}: the channels that touch it stay. A rule is one function in "
            "lightning_prune/graph/rules.",
            UserWarning,
            stacklevel=2,
        )
    whole, unknown = frozenset(flow.whole), tuple(flow.unknown)
    state = state_in(model, flow.trace.written)
    shapes, attributes = flow.trace.shapes, dict(sizes_held(flow))
    return ChannelGroups(_groups(flow, found, scales), shapes, whole, unknown, attributes, state)


def _groups(flow: Flow, found: Sequence[Signature], scales: Sequence[Mapping[str, Scale]]) -> list[ChannelGroup]:
    groups: list[ChannelGroup] = []
    for signature, scale in zip(found, scales, strict=True):
        if signature.reason == NOT_A_CHANNEL:
            continue
        members: list[Member] = []
        for slot, atoms in zip(signature.slots, signature.atoms, strict=True):
            parameter, axis = flow.slots[slot]
            is_input = bool(flow.consumed[atoms].all()) and not bool(flow.produced[atoms].any())
            role = "unmasked" if flow.unmasked[atoms].all() else "input" if is_input else "output"
            members.append(Member(parameter, axis, atoms - flow.starts[slot], role))
        # A group is called after the module that makes its channels; where nothing does, after the first that reads.
        producers = [member for member in members if member.role == "output"]
        parameter = shown_as((producers or members)[0].parameter)
        path = parameter.rpartition(".")[0] or parameter
        name = path if producers else f"{path} (input)"
        is_prunable = signature.reason == ""
        groups.append(
            ChannelGroup(name, signature.size, tuple(members), is_prunable, signature.reason, signature.inexact, scale)
        )
    # what has the same name is numbered, the prunable ones first
    seen = dict[str, int]()
    for position in sorted(range(len(groups)), key=lambda position: not groups[position].prunable):
        name = groups[position].name
        seen[name] = seen.get(name, 0) + 1
        if seen[name] > 1:
            groups[position] = replace(groups[position], name=f"{name}#{seen[name]}")
    return groups
