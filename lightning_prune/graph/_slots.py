"""Which slots of attention heads each tensor holds, from the weights that make them to those that read them."""

from __future__ import annotations

import math
import operator
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from lightning_prune.graph.rules.families import COPIES, FILLS, JOINS, MOVES, PARTS, RESHAPES, base_name
from lightning_prune.graph.trace import Call, Trace

_SAME = COPIES - FILLS
_LAYOUT = RESHAPES | MOVES | PARTS | JOINS | {"expand_as"}
_PRODUCTS = {
    "linear": ("input", "weight", "bias"),
    "addmm": ("mat1", "mat2", "self"),
    "matmul": ("self", "other", ""),
    "mm": ("self", "mat2", ""),
    "bmm": ("self", "mat2", ""),
    "baddbmm": ("batch1", "batch2", ""),
    "einsum": (),
}
"""What is multiplied and what is added, by the names of arguments."""
_HEAD = 1 << 32
"""A label is a slot, plus this times the number of the head whose attention it has passed; 0 before. No model
has as many slots, and of the 64 bits 31 are left for heads."""


@dataclass(eq=False)
class Use:
    """A weight by which activations are multiplied: its rows make slots, its columns read them.

    Attributes:
        first: number of its first row among all slots; columns follow the rows.
        name: of the weight, dense.
        rows: flat index of the first entry of each row, in all weights one after the other.
        columns: what is added for each column.
        where: path of the module that multiplies with it first.
        biases: flat indices of the entries that are added to the rows, of each bias that is.
    """

    first: int
    name: str
    rows: np.ndarray
    columns: np.ndarray
    where: str
    biases: list[np.ndarray] = field(default_factory=list)


Block = tuple[int, ...]
"""Numbers of the slots of a head, in their order."""


class SlotWalk:
    """One pass over the graph that notes which slots each tensor holds, or which entries of a weight.

    Both are tensors of numbers of the same shape as the tensor in question, on which the graph's own layout operators
    run.

    Attributes:
        trace: of the model.
        starts: by dense name the number of a weight's first entry among those of all weights.
        slots: by node the labels of the slots that it holds.
        entries: by node the entries of weights that it holds, where it is computed of these by layout alone.
        lost: nodes made of slots that hold none -> why.
        uses: weights that make slots or read them, in the order of their numbers.
        why: by slot the number of the reason for which it cannot be turned; 0 for none.
        reasons: in words.
        tied: weights and biases that something else uses as well -> what.
        block_of: by slot the head that it belongs to.
        passed: heads of values that have been averaged -> path of the module that does it.
        edges: pairs of heads whose slots are multiplied and summed over -> path of the module that does it.
        stayed: queries, keys and values that come from no head of slots -> why.
    """

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        sizes = [int(np.prod(shape)) for shape in trace.shapes.values()]
        self.starts = dict(zip(trace.shapes, np.concatenate([[0], np.cumsum(sizes)]).tolist(), strict=False))
        self.slots: dict[fx.Node, Any] = {}
        self.entries: dict[fx.Node, Any] = {}
        self.lost: dict[fx.Node, str] = {}
        self.uses: list[Use] = []
        self.why = np.zeros(0, dtype=np.int64)
        self.reasons: list[str] = [""]
        self.tied: dict[str, str] = {}
        self.block_of: dict[int, Block] = {}
        self.passed: dict[Block, str] = {}
        self.edges: dict[tuple[Block, Block], str] = {}
        self.stayed: dict[str, str] = {}
        for node in trace.nodes:
            if node.op == "output":
                for argument in node.all_input_nodes:
                    self.block(argument, "an output of the model shows it")
            elif node.target is operator.getitem:
                for held in (self.slots, self.entries):
                    if node.args[0] in held:
                        held[node] = held[node.args[0]][node.args[1]]
                self.inherit(node)
            elif node in trace.calls:
                self.see(trace.calls[node])

    def entries_of(self, node: Any) -> Any:  # noqa: ANN401
        """Return which entries of weights a node holds; None where it holds something else."""
        if isinstance(node, fx.Node) and (name := self.trace.names.get(node)) in self.starts:
            # made when they are asked for: those of an embedding never are
            shape = self.trace.shapes[name]
            return torch.arange(int(np.prod(shape))).reshape(shape) + self.starts[name]
        return self.entries.get(node)

    def see(self, call: Call) -> None:
        """Note what a call makes of slots and weights."""
        name, node = base_name(call.operator), call.node
        held = (self.slots, self.entries, self.trace.names, self.lost if name in _PRODUCTS else ())
        if not any(x in one for x in node.all_input_nodes for one in held) or node.meta.get("val") is None:
            self.inherit(node)
        elif name in _SAME or name == "neg":
            source = call["self"] if "self" in call.arguments else call["input"]
            for held, value in ((self.slots, self.slots.get(source)), (self.entries, self.entries_of(source))):
                if value is not None:
                    held[node] = value
            self.inherit(node)
        elif name in _LAYOUT:
            self.lay_out(call, name)
        elif name in ("mul", "div"):
            self.scale(call)
        elif name == "scaled_dot_product_attention":
            self.attend(call)
        elif name in _PRODUCTS and (name != "einsum" or len(call["tensors"]) == 2):
            self.multiply(call, name)
        else:
            self.give_up(call, f"{call.place} works on single slots of the heads")

    def inherit(self, node: fx.Node) -> None:
        """Let a tensor that holds no slots know why what it is made of holds none."""
        reason = next((self.lost[x] for x in node.all_input_nodes if x in self.lost), None)
        if reason is not None and node not in self.slots:
            self.lost[node] = reason

    def give_up(self, call: Call, reason: str) -> None:
        """Note that nothing which goes into a call can be turned."""
        for node in call.node.all_input_nodes:
            if node in self.slots:
                self.block(node, reason)
                self.lost.setdefault(call.node, reason)
            elif (entries := self.entries_of(node)) is not None and isinstance(entries, Tensor) and entries.numel():
                for at in {int(entries.min()), int(entries.max())}:
                    self.tied.setdefault(self.weight_at(at), call.place)
        self.inherit(call.node)

    def block(self, node: fx.Node | Tensor | np.ndarray | None, reason: str) -> None:
        """Note why slots cannot be turned."""
        held = self.slots.get(node) if isinstance(node, fx.Node) else node
        for one in held if isinstance(held, list | tuple) else [held]:
            if one is None:
                continue
            slots = np.unique(np.asarray(one) % _HEAD)
            if reason not in self.reasons:
                self.reasons.append(reason)
            free = slots[self.why[slots] == 0]
            self.why[free] = self.reasons.index(reason)

    def weight_at(self, entry: int) -> str:
        """Return the weight that an entry belongs to."""
        return list(self.starts)[bisect_right(list(self.starts.values()), entry) - 1]

    def lay_out(self, call: Call, name: str) -> None:
        """Let the operator itself move the numbers."""
        for held, get in ((self.slots, self.slots.get), (self.entries, self.entries_of)):
            values = {x: get(x) for x in call.node.all_input_nodes}
            if all(value is None for value in values.values()):
                continue
            if any(isinstance(value, list | tuple) for value in values.values()):
                return self.give_up(call, f"{call.place} works on several tensors")
            for x, value in values.items():
                shape = x.meta["val"].shape
                if value is None and 0 in shape:  # an empty cache of keys, to which the first ones are appended
                    values[x] = torch.zeros(shape, dtype=torch.int64)
                elif value is None and name.endswith("_as"):
                    values[x] = torch.zeros((), dtype=torch.int64).expand(shape)
                elif value is None:
                    return self.give_up(call, f"{call.place} puts something else beside slots of the heads")
            # numbers that were spread over places have no strides of their own, which a view would ask for
            values = {x: v.contiguous() if name in RESHAPES and v is not None else v for x, v in values.items()}
            args, kwargs = map_arg((call.node.args, call.node.kwargs), lambda x: values[x])  # noqa: B023
            held[call.node] = call.node.target(*args, **kwargs)  # type: ignore[operator]
        self.inherit(call.node)
        return None

    def scale(self, call: Call) -> None:
        """Let numbers pass, and what is the same for all slots of a head."""
        operands = [x for x in (call["self"], call["other"]) if isinstance(x, fx.Node)]
        held = [x for x in operands if x in self.slots]
        if len(held) != 1 or (call["self"] not in held and base_name(call.operator) == "div"):
            return self.give_up(call, f"{call.place} multiplies slots of the heads with each other")
        slots = self.slots[held[0]]
        for other in (x for x in operands if x is not held[0]):
            shape = other.meta["val"].shape
            for axis in range(-min(len(shape), slots.dim()), 0):
                if shape[axis] != 1 and bool((slots != slots.narrow(axis, 0, 1)).any()):
                    why = "multiplies each slot by a value of its own (rotary positions)"
                    return self.give_up(call, f"{call.place} {why}")
        self.slots[call.node] = slots.expand(call.node.meta["val"].shape)
        return None

    def attend(self, call: Call) -> None:
        """Note the pairs of a fused attention."""
        query, key, value = (call[name] for name in ("query", "key", "value"))
        heads = query.meta["val"].shape[-3] if query.meta["val"].dim() > 2 else 1

        def repeated(node: fx.Node) -> Tensor | None:
            slots = self.slots.get(node)
            own = 1 if slots is None or slots.dim() < 3 else slots.shape[-3]
            return slots if slots is None or own in (1, heads) else slots.repeat_interleave(heads // own, -3)

        self.slots_meet(call, query, key, self.slots.get(query), _turned(repeated(key)))
        made = self.pass_through(call, value, repeated(value))
        if made is not None:
            self.slots[call.node] = made
        if isinstance(mask := call.get("attn_mask"), fx.Node) and mask in self.slots:
            self.block(mask, f"{call.place} takes it as a mask")

    def multiply(self, call: Call, name: str) -> None:
        """Note a product of matrices: with a weight, or of two activations."""
        if name == "einsum":
            (left, right), bias = call["tensors"], None
            letters, _, made = call["equation"].replace(" ", "").partition("->")
        else:
            (left, right, bias), letters, made = (call.get(operand) for operand in _PRODUCTS[name]), "", ""
        a, b = (self.slots.get(x) if (view := self.entries_of(x)) is None else view for x in (left, right))
        shape, sizes = tuple(call.node.meta["val"].shape), dict[str, int]()
        if isinstance(a, list | tuple) or isinstance(b, list | tuple) or "." in letters:
            return self.give_up(call, f"{call.place} works on several tensors")
        one, _, two = letters.partition(",")
        both, summed = [x for x in one if x in two and x in made], [x for x in one if x in two and x not in made]
        free, columns = [x for x in one if x not in two], [x for x in two if x not in one]
        if letters:
            if {*one, *two} != {*made, *summed} or len({*one}) < len(one) or len({*two}) < len(two):
                return self.give_up(call, f"{call.place} sums over one of its operands alone")
            sizes = dict(zip((*one, *two), (*left.meta["val"].shape, *right.meta["val"].shape), strict=True))
            counts = {"".join(part): math.prod(sizes[x] for x in part) for part in (free, columns, summed)}
            shape = (*(sizes[x] for x in both), counts["".join(free)], counts["".join(columns)])

            def matrices(x: Tensor | None, own: str, rows: list[str], last: list[str]) -> Tensor | None:
                order, size = [own.index(letter) for letter in (*both, *rows, *last)], counts["".join(last)]
                return x if x is None else x.permute(order).reshape(*(sizes[at] for at in both), -1, size)

            a, b = matrices(a, one, free, summed), matrices(b, two, summed, columns)
        elif name == "linear":
            b = _turned(b)
        of_weights = [x in self.trace.names or x in self.entries for x in (left, right)]
        matrix = next((x for x, is_weight in zip((a, b), of_weights, strict=True) if is_weight), None)
        if all(of_weights) or (matrix is not None and (matrix.dim() < 2 or math.prod(matrix.shape[:-2]) > 1)):
            return self.give_up(call, f"{call.place} multiplies with a weight of its own for each head")
        if matrix is not None and of_weights[1]:
            result = self.with_weight(call, a, matrix.flatten(0, -2), bias, shape)
        elif matrix is not None:
            turned = (*shape[:-2], shape[-1], shape[-2])
            result = _turned(self.with_weight(call, _turned(b), matrix.flatten(0, -2).T, bias, turned))
        else:
            result = self.of_activations(call, left, right, a, b, shape)
        if result is not None and letters:
            order = [*both, *free, *columns]
            result = result.reshape([sizes[x] for x in order]).permute([order.index(x) for x in made])
        if result is not None:
            self.slots[call.node] = result
        else:
            self.inherit(call.node)
        return None

    def with_weight(
        self, call: Call, x: Tensor | None, weight: Tensor, bias: fx.Node | None, shape: Iterable[int]
    ) -> Tensor | None:
        """Note a product with a weight (in, out), which reads slots and makes others; return those."""
        rows, columns = weight[0].numpy(), (weight[:, 0] - weight[0, 0]).numpy()
        name, added = self.weight_at(int(weight.min())), self.entries_of(bias)
        is_grid = bool((weight == weight[:1] + (weight[:, :1] - weight[0, 0])).all())
        if not is_grid or self.weight_at(int(weight.max())) != name:
            self.give_up(call, f"{call.place} multiplies with a weight that is put together of several")
            return None
        use = next((u for u in self.uses if np.array_equal(u.rows, rows) and np.array_equal(u.columns, columns)), None)
        if use is None:
            for other in (u for u in self.uses if u.name == name):
                if not np.array_equal(other.columns, columns) or np.isin(rows, other.rows).any():
                    self.tied.setdefault(name, call.place)
            use = Use(len(self.why), name, rows, columns, call.where)
            self.why = np.concatenate([self.why, np.zeros(len(rows) + len(columns), dtype=np.int64)])
            self.uses.append(use)
        made = use.first + np.arange(len(rows))
        if bias is not None and (added is None or added.shape != rows.shape):
            self.block(made, f"{call.place} adds what is no vector of weights")
        elif added is not None and not any(np.array_equal(added, b) for b in use.biases):
            use.biases.append(added.numpy())
        if x is None or not self.read(call, x, use):
            self.block(use.first + len(rows) + np.arange(len(columns)), f"{call.place} reads something else as well")
        return torch.from_numpy(made).expand(tuple(shape))

    def read(self, call: Call, x: Tensor, use: Use) -> bool:
        """Note that a weight reads slots which an attention has put together; tell whether it is so."""
        rows = x.reshape(-1, x.shape[-1])
        slots, heads = rows % _HEAD, rows // _HEAD
        first = slots[0].tolist()
        number = {int(head): at for at, head in reversed(list(enumerate(heads[0].tolist())))}
        leaders = torch.tensor([number[int(head)] for head in heads[0]])
        ends = heads[:, sorted(number.values())].sort(1).values
        is_known = all(slot in self.block_of for slot in first) and bool(
            (heads > 0).all() and (slots == slots[0]).all()
        )
        if not is_known or bool((heads != heads[:, leaders]).any()) or bool((ends.diff(dim=1) == 0).any()):
            self.block(x, f"{call.place} reads them")
            return False
        pairs: list[tuple[Block, Block]] = []
        for leader in number.values():
            column = {first[at]: at for at in range(len(first)) if leaders[at] == leader}
            block = self.block_of[first[leader]]
            if set(column) != set(block) or len(column) != int((leaders == leader).sum()):
                self.block(x, f"{call.place} reads parts of heads")
                return False
            pairs.append((block, tuple(use.first + len(use.rows) + column[slot] for slot in block)))
        for block, columns in pairs:
            self.declare(columns, call)
            self.edges.setdefault((block, columns), self.passed[block])
        return True

    def of_activations(
        self, call: Call, left: fx.Node, right: fx.Node, a: Tensor | None, b: Tensor | None, shape: Iterable[int]
    ) -> Tensor | None:
        """Note a product of two activations: of query and key, or of attention weights and values."""
        if a is not None and b is not None:
            self.slots_meet(call, left, right, a, b)
            return None
        if a is not None and _is_spread(a, -1):
            made = self.pass_through(call, left, _turned(a), (*tuple(shape)[:-2], tuple(shape)[-1], tuple(shape)[-2]))
            return _turned(made)
        if b is not None and _is_spread(b, -2):
            return self.pass_through(call, right, b, shape)
        self.slots_meet(call, left, right, a, b)
        return None

    def slots_meet(self, call: Call, left: fx.Node, right: fx.Node, a: Tensor | None, b: Tensor | None) -> None:
        """Note that slots (…, n, slots) and (…, slots, m) are multiplied and summed over."""
        what = f"query and key of {call.where or 'the model itself'}"
        if a is None or b is None:
            missing = left if a is None else right
            reason = self.lost.get(missing, f"{missing.name} comes from no linear layer")
            self.stayed.setdefault(what, reason)
            for one in (a, b):
                self.block(one, reason)
            return
        if not (_is_spread(a, -2) and _is_spread(b, -1)) or bool((a >= _HEAD).any() or (b >= _HEAD).any()):
            self.give_up(call, f"{call.place} multiplies what is no query and key")
            return
        one, other = torch.broadcast_tensors(a[..., 0, :], b[..., 0])
        for pair in torch.cat([one, other], -1).reshape(-1, 2 * one.shape[-1]).unique(dim=0).tolist():
            blocks = tuple(pair[: len(pair) // 2]), tuple(pair[len(pair) // 2 :])
            for block in blocks:
                self.declare(block, call)
            self.edges.setdefault(blocks, call.where)

    def pass_through(
        self, call: Call, value: fx.Node, slots: Tensor | None, shape: Iterable[int] = ()
    ) -> Tensor | None:
        """Note that values (…, places, slots) are averaged over places; return the slots of the result."""
        if slots is None:
            if value in self.lost:
                self.stayed.setdefault(f"value of {call.where or 'the model itself'}", self.lost[value])
            return None
        if not _is_spread(slots, -2) or bool((slots >= _HEAD).any()):
            self.give_up(call, f"{call.place} multiplies what is no value")
            return None
        for row in slots[..., 0, :].reshape(-1, slots.shape[-1]).unique(dim=0).tolist():
            self.declare(tuple(row), call)
            self.passed.setdefault(tuple(row), call.where)
        out = slots[..., :1, :].expand(tuple(shape) or call.node.meta["val"].shape)
        heads = torch.arange(1, out[..., 0, 0].numel() + 1).reshape(out[..., :1, :1].shape)
        return out + heads * _HEAD

    def declare(self, block: Block, call: Call) -> None:
        """Note slots as those of one head."""
        known = {self.block_of.setdefault(slot, block) for slot in block}
        if known != {block} or len(set(block)) < len(block):
            reason = f"{call.place} puts slots together that are apart elsewhere"
            self.block(np.array(sorted({*block, *(slot for other in known for slot in other)})), reason)


def _turned(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.transpose(-1, -2)


def _is_spread(x: Tensor, axis: int) -> bool:
    """Tell whether it is the same all along an axis."""
    return bool((x == x.narrow(axis, 0, 1)).all())
