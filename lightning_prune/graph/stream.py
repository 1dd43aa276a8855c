"""The residual streams of pre-norm transformers: what writes into them, what reads them, and what else touches them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import fx, nn

from lightning_prune.errors import GraphError
from lightning_prune.graph.axes import Fixed
from lightning_prune.graph.flow import Flow
from lightning_prune.graph.rules.families import COPIES, FILLS, JOINS, MOVES, PARTS, RESHAPES, base_name
from lightning_prune.graph.rules.table import rule_of
from lightning_prune.graph.trace import Call, trace
from lightning_prune.model.example import Inputs

Axis = tuple[str, int]
"""Dense name of a tensor, and one of its axes."""

_LAYOUT = (COPIES - FILLS) | {"zeros_like", "zero"} | RESHAPES | MOVES | PARTS | JOINS
_LAYOUT |= {"expand_as", "index_select", "constant_pad_nd"}
_NORMS = ("layer_norm", "rms_norm", "rsqrt", "linalg_vector_norm")
_STREAM, _WEIGHT = "the stream", "a weight"


@dataclass(frozen=True)
class Reader:
    """A weight that is multiplied with the stream.

    Attributes:
        weight: its dense name, and the axis that is contracted.
        bias: dense name of what is added to the product; "" for nothing.
        norm: path of the normalisation that the stream has passed; "" where the stream is read as it is.
        where: path of the module that does it.
    """

    weight: Axis
    bias: str
    norm: str
    where: str


@dataclass(frozen=True)
class Scale:
    """A vector by which what a writer gives is multiplied before it is added to the stream (layer scale).

    Attributes:
        name: its dense name.
        writers: what is multiplied: weight and, where there is one, bias.
    """

    name: str
    writers: tuple[Axis, ...]


@dataclass
class Stream:
    """A tensor that is written into by additions alone and read through normalisations.

    Attributes:
        size: its width.
        norms: paths of the modules that normalise it.
        writers: weights, biases, embeddings and positions whose axis is that of the stream.
        readers: the weights that read it.
        scales: vectors in front of the additions.
        entrance: path of the module whose first argument is where it begins, since something else than a weight makes
            its first values; "" where weights do.
    """

    size: int
    norms: list[str] = field(default_factory=list)
    writers: list[Axis] = field(default_factory=list)
    readers: list[Reader] = field(default_factory=list)
    scales: list[Scale] = field(default_factory=list)
    entrance: str = ""


class _Refusal(Exception):
    """What stands in the way, in words, and the node at which."""

    def __init__(self, text: str, node: fx.Node | None = None) -> None:
        super().__init__(text)
        self.node = node


def streams_of(model: nn.Module, example: Inputs) -> tuple[list[Stream], dict[str, str]]:
    """Find the residual streams of a model, as the axes that several of its normalisations share.

    Args:
        model: any module that torch.export accepts.
        example: arguments of its forward.

    Returns:
        the streams, and path of the first normalisation of each other axis -> why it is none.

    Raises:
        GraphError: torch.export refuses the model or these inputs, or nothing in it normalises.
    """
    flow = Flow(trace(model, example), rule_of, allow_inexact=True)
    flow.solve()
    paths = {
        call.where
        for call in flow.trace.calls.values()
        if base_name(call.operator) in _NORMS
        and (call.operator in _NORMS[:2] or not any(True for _ in model.get_submodule(call.where).children()))
    }
    entries: dict[str, fx.Node] = {}
    for node in flow.trace.nodes:
        call = flow.trace.calls.get(node)
        if call is not None and call.where in paths:
            outside = [x for x in node.all_input_nodes if x in flow.activations and _where(flow, x) != call.where]
            if outside:
                entries.setdefault(call.where, outside[0])
    if not entries:
        raise GraphError(f"{type(model).__name__} has no normalisation, so no stream that could be rotated")
    streams, others = list[Stream](), dict[str, str]()
    shared: dict[tuple[int, ...], list[str]] = {}
    for path, node in entries.items():
        last = flow.dims[node][-1]
        if isinstance(last, Fixed):
            if last.reason not in others.values():
                others[path] = last.reason
        else:
            shared.setdefault(tuple(flow.label[last].tolist()), []).append(path)
    for labels, norms in shared.items():
        try:
            streams.append(_walked(flow, np.array(labels), norms, entries))
        except _Refusal as refusal:
            others[norms[0]] = str(refusal)
    return streams, others


def _where(flow: Flow, node: fx.Node) -> str | None:
    call = flow.trace.calls.get(node)
    return None if call is None else call.where


def _walked(flow: Flow, labels: np.ndarray, norms: list[str], entries: Mapping[str, fx.Node]) -> Stream:
    if flow.frozen[labels].any():
        raise _Refusal(flow.reasons[int(flow.why[labels].min())])
    try:
        return _Walk(flow, labels, norms).walk()
    except _Refusal as refusal:
        first = entries[norms[0]]
        # What comes before the first normalisation may be left as it is, where a module begins behind it.
        if refusal.node is None or refusal.node not in (before := _ancestors(first)):
            raise
        users = [where for user in first.users if (where := _where(flow, user)) is not None]
        # the innermost module in which all of them are: the first of the parents of one that is a parent of each
        parents = [".".join(users[0].split(".")[:end]) for end in range(users[0].count(".") + 1, 0, -1)]
        outer = (path for path in parents if all(f"{user}.".startswith(f"{path}.") for user in users))
        entrance = next(outer, "")
        if not entrance or f"{_where(flow, first)}.".startswith(f"{entrance}."):
            raise
        return _Walk(flow, labels, norms, before, first, entrance).walk()


def _ancestors(node: fx.Node) -> set[fx.Node]:
    seen, following = {node}, [node]
    while following:
        for argument in following.pop().all_input_nodes:
            if argument not in seen:
                seen.add(argument)
                following.append(argument)
    return seen


class _Walk:
    """One pass over the graph that notes what each node holds: the stream, a normalisation of it, or a weight.

    Args:
        flow: solved.
        labels: of the stream's entries.
        norms: paths of the modules that normalise it.
        before: nodes that come before the entrance.
        first: the node at the entrance.
        entrance: path of the module that it enters.
    """

    def __init__(
        self,
        flow: Flow,
        labels: np.ndarray,
        norms: list[str],
        before: set[fx.Node] | None = None,
        first: fx.Node | None = None,
        entrance: str = "",
    ) -> None:
        self.flow, self.labels, self.before, self.first = flow, labels, before or set(), first
        self.stream = Stream(len(labels), norms, entrance=entrance)
        self.kinds: dict[fx.Node, str] = {}
        self.made_by: dict[fx.Node, tuple[Axis, ...]] = {}

    def walk(self) -> Stream:
        """Return the stream. Raises _Refusal where something touches it that a rotation would change."""
        for node in self.flow.trace.nodes:
            if node in self.before and node.op != "placeholder":
                if node is self.first:
                    self.kinds[node] = _STREAM
                elif self.axis(node) is not None and any(user not in self.before for user in node.users):
                    raise _Refusal(f"{node.name} is read beside the stream that begins after it")
            elif node.op == "placeholder":
                if self.axis(node) is not None:
                    self.kinds[node] = _WEIGHT
            elif node.op == "call_function":
                self.see(node)
        stream = self.stream
        stream.writers = list(dict.fromkeys(stream.writers))
        stream.readers = list(dict.fromkeys(stream.readers))
        norms: dict[Axis, set[str]] = {}
        for reader in stream.readers:
            norms.setdefault(reader.weight, set()).add(reader.norm)
        for (name, _), several in norms.items():
            if len(several) > 1:
                raise _Refusal(f"{name} reads what {' and '.join(sorted(several))} give")
        return stream

    def axis(self, node: fx.Node) -> int | None:
        """Return the axis of a node that is the stream's. Raises _Refusal where it holds a part or another order."""
        dims = self.flow.dims.get(node)
        own = None
        several = dims if isinstance(dims, list) else [dims]
        for axis, dim in (pair for one in several for pair in enumerate(one or ())):
            if isinstance(dim, np.ndarray):
                labels = self.flow.label[dim]
                if np.array_equal(labels, self.labels):
                    own = axis
                elif np.isin(labels, self.labels).any():
                    name = self.flow.trace.names.get(node) or self.flow.trace.calls[node].place
                    raise _Refusal(f"{name} holds the channels of the stream in another order, or more than once", node)
        return own

    def source(self, node: Any) -> Axis | None:  # noqa: ANN401
        """Return the parameter or buffer that a node is, reordered or not, with the axis of it that is the stream's."""
        if not isinstance(node, fx.Node):
            return None
        sources = [one for one in _ancestors(node) if one in self.flow.trace.names]
        if len(sources) != 1:
            return None
        axis = self.axis(sources[0])
        return None if axis is None else (self.flow.trace.names[sources[0]], axis)

    def write(self, node: Any) -> tuple[Axis, ...]:  # noqa: ANN401
        """Note a weight as a writer, and return it."""
        if node is None:
            return ()
        source = self.source(node)
        if source is None:
            raise _Refusal(f"{node.name} is computed from several weights", node)
        self.stream.writers.append(source)
        return (source,)

    def see(self, node: fx.Node) -> None:
        """Note what a call makes of the stream."""
        call = self.flow.trace.calls.get(node)
        touching = {x: self.kinds[x] for x in node.all_input_nodes if x in self.kinds}
        axis = self.axis(node)
        if (not touching and axis is None) or node.meta.get("val") is None:  # nothing, or an assertion
            return
        if call is None:  # one of several results
            if axis is not None:
                self.kinds[node] = next(iter(touching.values()))
            return
        name, kinds = base_name(call.operator), set(touching.values())
        if call.where in self.stream.norms:
            others = kinds - {_STREAM, _WEIGHT, call.where}
            if others:
                raise _Refusal(f"{call.where} normalises what {others.pop()} has normalised (post-norm)", node)
            if axis is not None and kinds == {_STREAM} and name in COPIES:
                # a cast to the type that it has already: export lets what follows use its result (torch 2.13)
                self.kinds[node] = _STREAM
            elif axis is not None:
                self.kinds[node] = call.where if kinds - {_WEIGHT} else _WEIGHT
        elif name in ("linear", "addmm", "conv1d", "conv2d", "conv3d"):
            self.multiply(call, axis)
        elif name == "embedding":
            self.write(call["weight"])
            self.kinds[node] = _STREAM
        elif name in ("add", "sub"):
            self.add(call, touching, axis)
        elif name in ("mul", "div"):
            self.scale(call, touching, axis)
        elif axis is not None and (name in _LAYOUT or (name in ("mean", "sum") and self.is_beside(call))):
            self.pass_on(call, touching)
        else:
            raise self.wrong(call)

    def wrong(self, call: Call) -> _Refusal:
        return _Refusal(f"{call.place} works on the single channels of the stream", call.node)

    def is_beside(self, call: Call) -> bool:
        """Say whether a reduction runs over other axes than the stream's."""
        own, rank = self.axis(call["self"]), call["self"].meta["val"].dim()
        over = call.get("dim")
        return bool(over) and own not in {one % rank for one in (over if isinstance(over, list | tuple) else [over])}

    def pass_on(self, call: Call, touching: Mapping[fx.Node, str]) -> None:
        """Note that a call keeps what it gets; several tensors become one by concatenation."""
        kinds = set(touching.values())
        if len(kinds) > 1:
            if kinds != {_STREAM, _WEIGHT}:
                raise _Refusal(f"{call.place} joins the stream with what is normalised", call.node)
            for node, kind in touching.items():
                if kind == _WEIGHT:
                    self.write(node)
            kinds = {_STREAM}
        self.kinds[call.node] = kinds.pop()
        if len(touching) == 1 and (made := self.made_by.get(next(iter(touching)))):
            self.made_by[call.node] = made

    def multiply(self, call: Call, axis: int | None) -> None:
        """Note a reader, a writer, or both."""
        # Conv1D of transformers is an addmm, whose weight lies the other way round
        reads, writes = (0, 1) if call.operator == "addmm" else (1, 0)
        x, weight, bias = call.get("input", call.get("mat1")), call.get("weight", call.get("mat2")), call.get("bias")
        bias = call["self"] if call.operator == "addmm" else bias
        if call.get("groups", 1) != 1 or call.get("alpha", 1) != 1 or call.get("beta", 1) != 1:
            raise self.wrong(call)
        own, names = self.source(weight), self.flow.trace.names
        computed = _Refusal(f"{call.place} multiplies the stream with a weight that is computed", call.node)
        kind = self.kinds.get(x)
        if kind is not None:
            contracted = 1 if call.operator.startswith("conv") else x.meta["val"].dim() - 1
            # of a square weight that writes as well the axis of what is read has to be told by its place
            source = (names[weight], reads) if weight in names else own
            if self.axis(x) != contracted or source is None or source[1] != reads or kind == _WEIGHT:
                raise computed
            added = [] if bias is None else [names[node] for node in _ancestors(bias) if node in names]
            self.stream.readers.append(
                Reader(source, added[0] if added else "", "" if kind == _STREAM else kind, call.where)
            )
        if axis is not None:
            source = (names[weight], writes) if weight in names else own
            if source is None or source[1] != writes:
                raise computed
            self.stream.writers.append(source)
            self.made_by[call.node] = (source, *self.write(bias))
            self.kinds[call.node] = _STREAM

    def add(self, call: Call, touching: Mapping[fx.Node, str], axis: int | None) -> None:
        """Note a sum: of what is written, of positions, never of what is normalised."""
        kinds, operands = set(touching.values()), (call["self"], call["other"])
        if kinds - {_STREAM, _WEIGHT}:
            norm = (kinds - {_STREAM, _WEIGHT}).pop()
            why = "the stream is post-norm, or a head reads a sum of what its norm gives"
            raise _Refusal(f"{call.place} adds what {norm} has normalised: {why}", call.node)
        if axis is None or len(touching) < len(set(operands)):
            raise self.wrong(call)
        if _STREAM in kinds:
            for node, kind in touching.items():
                if kind == _WEIGHT:
                    self.write(node)
        self.kinds[call.node] = _STREAM if _STREAM in kinds else _WEIGHT

    def scale(self, call: Call, touching: Mapping[fx.Node, str], axis: int | None) -> None:
        """Note a product with a number for each place, or with a vector in front of an addition."""
        operands = (call["self"], call["other"])
        if axis is None or not isinstance(call["self"], fx.Node):
            raise self.wrong(call)
        if len(touching) == 1:
            (node,) = touching
            others = [x for x in operands if x is not node and isinstance(x, fx.Node)]
            from_end = call.node.meta["val"].dim() - axis
            shapes = [tuple(x.meta["val"].shape) for x in others]
            if call["other"] is call["self"] or any(len(s) >= from_end and s[-from_end] != 1 for s in shapes):
                raise self.wrong(call)
            self.kinds[call.node] = touching[node]
            return
        made = next((x for x in operands if x in self.made_by), None)
        source = self.source(next((x for x in operands if self.kinds.get(x) == _WEIGHT), None))
        if made is None or source is None or len(made.users) != 1 or base_name(call.operator) != "mul":
            raise self.wrong(call)
        if any(size != 1 for at, size in enumerate(self.flow.trace.shapes[source[0]]) if at != source[1]):
            raise self.wrong(call)
        self.stream.scales.append(Scale(source[0], self.made_by[made]))
        self.kinds[call.node] = _STREAM
