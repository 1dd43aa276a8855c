"""Means over channels that stay exact at another width, because a parameter takes up what changes.

Masked, a mean over n channels counts the removed ones as zeros; compact, it is taken over n' and is n / n' times as
large. Each tensor that is made of it differs by some power of n' / n, until a parameter that multiplies it takes that
power up: the weight of an RMS norm is multiplied by sqrt(n / n'), its eps by n / n'.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor, fx

from lightning_prune.graph._vanishing import SAME, WEIGHTED
from lightning_prune.graph.rules.families import DEVIATIONS, JOINS, base_name
from lightning_prune.graph.trace import Call, Trace
from lightning_prune.model.counting import MEAN


@dataclass(frozen=True)
class Scale:
    """What a parameter is multiplied by where n channels become n': ``(n' / n) ** power``.

    Args:
        power: -1/2 for the weight of an RMS norm.
        offset: what the code adds to the parameter before it multiplies with it: 1 in Gemma's norms. Then
            ``(weight + offset) * factor - offset`` takes its place.
    """

    power: float
    offset: float = 0.0


@dataclass
class TakenUp:
    """Which parameters and attributes take up what a mean over another number of channels changes.

    Args:
        scales: dense name -> how it is multiplied.
        users: dense name -> the calls that multiply with it.
        attributes: path of a float that goes with n / n', the eps -> the calls that add it.
        reason: why they do not; "" when they do.
    """

    scales: dict[str, Scale] = field(default_factory=dict)
    users: dict[str, set[fx.Node]] = field(default_factory=dict)
    attributes: dict[str, set[fx.Node]] = field(default_factory=dict)
    reason: str = ""

    def take(self, name: str, scale: Scale, user: fx.Node) -> bool:
        """Let a parameter take up a power; tell whether it does not take up another one already."""
        self.users.setdefault(name, set()).add(user)
        return self.scales.setdefault(name, scale) == scale


@dataclass(frozen=True, eq=False)
class Site:
    """A mean over channels, in one pass.

    Args:
        node: its call.
        dim: the channels.
        taken: what takes up its change.
        kind: "mean", "softmax" for the width whose root divides scores, of which a weight may take up one of each; or
            "counted" where the module counts removed channels further on.
    """

    node: fx.Node
    dim: np.ndarray
    taken: TakenUp
    kind: str = "mean"


_DEGREE_ONE = "neg abs absolute relu leaky_relu positive mean sum amax amin linalg_vector_norm"
_HOMOGENEOUS = frozenset(_DEGREE_ONE.split()) | SAME
_POWERS = {"square": 2.0, "sqrt": 0.5, "rsqrt": -0.5, "reciprocal": -1.0}


class Scales:
    """Follows means over channels to the parameters that take up their change.

    Args:
        trace: of the model.
        vanishing: its nodes that are zero where a channel was removed.
    """

    def __init__(self, trace: Trace, vanishing: Collection[fx.Node]) -> None:
        self._trace = trace
        self._vanishing = vanishing
        self._known: dict[fx.Node, TakenUp] = {}
        self._parameters: dict[fx.Node, tuple[str, float]] = {}
        for node in trace.nodes:
            if (name := trace.names.get(node)) in trace.parameters and name is not None:
                self._parameters[node] = name, 0.0
            elif node in trace.calls and len(node.all_input_nodes) == 1 and node.all_input_nodes[0] in self._parameters:
                call, (name, offset) = trace.calls[node], self._parameters[node.all_input_nodes[0]]
                if base_name(call.operator) in SAME:
                    self._parameters[node] = name, offset
                elif base_name(call.operator) == "add" and not offset and call["alpha"] == 1:
                    self._parameters[node] = name, float(next(n for n in _numbers(call)))

    def users(self, name: str) -> set[fx.Node]:
        """Return the calls that use a parameter, by itself or with a number added."""
        made = {node for node, (parameter, _) in self._parameters.items() if parameter == name}
        return {user for node in made for user in node.users if user not in made and not _is_check(user)}

    def adding(self, path: str) -> set[fx.Node]:
        """Return the calls that seem to take the float of this attribute; all means where that divides these."""
        where, _, name = path.rpartition(".")
        calls = [call for call in self._trace.calls.values() if self._where(call) == where]
        if name == MEAN:
            return {call.node for call in calls if base_name(call.operator) == "mean"}
        value = self._trace.floats[path]
        return {call.node for call in calls if any(v is value or v == value for v in _numbers(call))}

    def of_rms_norm(self, call: Call) -> TakenUp:
        """Return what takes up the change of an RMS norm: its own weight, or the layers that read it."""
        if call.node not in self._known:
            taken = self._known[call.node] = TakenUp()
            self._take_eps(call, call.get("eps"), taken)
            weight = call.get("weight")
            if not taken.reason and not (isinstance(weight, fx.Node) and self._take(call, weight, 0.5, taken)):
                self._spread(call.node, 0.5, taken)
        return self._known[call.node]

    def of_mean(self, call: Call) -> TakenUp:
        """Return what takes up the change of a mean."""
        if call.node not in self._known:
            taken = self._known[call.node] = TakenUp()
            self._spread(call.node, -1.0, taken)
        return self._known[call.node]

    def counted(self, call: Call) -> TakenUp:
        """Return the attribute by which a module goes on counting removed channels in all of its means.

        That is for modules whose means are over channels alone, and which take no other statistics.
        """
        where, taken = self._where(call), TakenUp()
        below = [one for one in self._trace.calls.values() if f"{self._where(one)}.".startswith(f"{where}.")]
        others = {base_name(one.operator) for one in below if one.where != call.where}
        if not where or "mean" in others or any(base_name(one.operator) in DEVIATIONS for one in below):
            taken.reason = f"{call.place} is one of several statistics"
        else:
            taken.attributes[f"{where}.{MEAN}"] = {call.node}
        return taken

    def of_scores(self, product: Call, query: fx.Node, key: fx.Node, value: fx.Node | None, end: fx.Node) -> TakenUp:
        """Return what takes up that scores are divided by the root of another width: what makes the query.

        Where one layer makes query, key and value, it takes up the fourth root, and the reader of the values the rest.

        Args:
            product: of query and key.
            query: one side of it.
            key: the other side.
            value: what the attention's weights multiply; None: it was not seen.
            end: the call that multiplies it.
        """
        taken = TakenUp()
        of_query, of_key, of_value = (dict[str, set[fx.Node]]() for _ in range(3))
        are_known = self._makers(query, of_query) and self._makers(key, of_key)
        is_shared = not of_query.keys().isdisjoint(of_key)
        if is_shared:
            are_known &= value is not None and self._makers(value, of_value)
            are_known &= of_query.keys() == of_key.keys() == of_value.keys()
        if not are_known or not of_query:
            taken.reason = f"{product.place} is divided by the root of its width, which nothing takes up"
            return taken
        for name, users in of_query.items():
            taken.scales[name] = Scale(0.25 if is_shared else 0.5)
            taken.users[name] = users
        if is_shared:
            self._spread(end, 0.25, taken)
        return taken

    def _makers(self, node: fx.Node, makers: dict[str, set[fx.Node]]) -> bool:
        """Find the parameters to which a tensor is proportional; tell whether there are any."""
        following = [(node, node)]
        while following:
            node, user = following.pop()
            call = self._trace.calls.get(node)
            name, inputs = "" if call is None else base_name(call.operator), node.all_input_nodes
            if node in self._parameters and not self._parameters[node][1]:
                makers.setdefault(self._parameters[node][0], set()).add(user)
            elif node.target is operator.getitem or name in SAME | {"neg"}:
                following.append((inputs[0], node))
            elif name in JOINS | {"add", "sub"} and all(one in self._vanishing for one in inputs):
                following += [(one, node) for one in inputs]
            elif call is not None and (name in WEIGHTED or name == "rms_norm"):
                nodes = [call.get(held) for held in ("weight", "bias") if isinstance(call.get(held), fx.Node)]
                if not nodes or any(one not in self._parameters for one in nodes):
                    return False
                following += [(one, node) for one in nodes]
            elif name in ("mul", "div"):
                those = [one for one in inputs if one in self._parameters] or [
                    one for one in inputs if one in self._vanishing
                ]
                if len(those) != 1:
                    return False
                following.append((those[0], node))
            else:
                return False
        return True

    def divisors(self, query: fx.Node, key: fx.Node, product: fx.Node) -> list[float]:
        """Return the numbers that multiply or divide query, key or their product."""
        passed = SAME | {"mul", "div", "add", "sub", "cat", "neg", "masked_fill"}
        found: list[float] = []
        for is_before, following in ((True, [query, key]), (False, list(product.users))):
            seen = set(following)
            while following:
                node = following.pop()
                call = self._trace.calls.get(node)
                name = "" if call is None else base_name(call.operator)
                if call is not None and name in ("mul", "div"):
                    found += [float(number) for number in _numbers(call) if isinstance(number, (int, float))]
                if name in passed or node.target is operator.getitem:
                    more = [one for one in (node.all_input_nodes if is_before else node.users) if one not in seen]
                    seen.update(more)
                    following += more
        return found

    def value_of(self, product: fx.Node) -> tuple[fx.Node | None, fx.Node]:
        """Return what the softmax of a product multiplies, and the call that does."""
        ahead, seen = list(product.users), {product}
        while ahead:
            node = ahead.pop()
            call = self._trace.calls.get(node)
            if call is not None and base_name(call.operator) in ("matmul", "bmm", "einsum"):
                value = next((one for one in node.all_input_nodes if one in self._vanishing), None)
                return value, node
            if node not in seen:
                seen.add(node)
                ahead += node.users
        return None, product

    def _spread(self, start: fx.Node, power: float, taken: TakenUp) -> None:
        powers = {start: power}
        for node in self._trace.nodes:
            if taken.reason or node is start or powers.keys().isdisjoint(node.all_input_nodes):
                continue
            if _is_check(node):
                continue
            if node.target is operator.getitem:
                made: float | None = powers[node.all_input_nodes[0]]
            else:
                call = self._trace.calls.get(node)
                made = None if call is None else self._power(call, powers, taken)
                if made is None and not taken.reason:
                    taken.reason = f"{call.place} takes what it changes" if call is not None else "it is an output"
            if made:
                powers[node] = made

    def _power(self, call: Call, powers: Mapping[fx.Node, float], taken: TakenUp) -> float | None:
        """Return the power by which the result of a call differs; None where it is no power."""
        name, tensors = base_name(call.operator), call.node.all_input_nodes
        those = [powers.get(node, 0.0) for node in tensors]
        if name in _HOMOGENEOUS:
            return those[0] if not any(those[1:]) else None
        if name in _POWERS:
            return those[0] * _POWERS[name]
        if name == "pow" and isinstance(call.get("exponent"), (int, float)):
            return those[0] * call["exponent"]
        if name in ("cat", "concat", "stack"):
            return those[0] if len(set(those)) == 1 else None
        if name in ("add", "sub", "clamp_min", "clamp"):
            return self._sum(call, those, taken)
        if name in ("mul", "matmul", "bmm", "mm"):
            return self._product(call, [call["self"], call.get("other", call.get("mat2"))], powers, taken)
        if name == "div":
            return powers.get(call["self"], 0.0) - powers.get(call["other"], 0.0)
        if name == "addcmul":
            product = self._product(call, [call["tensor1"], call["tensor2"]], powers, taken)
            return product if product == powers.get(call["self"], 0.0) else None
        if name in WEIGHTED and not powers.keys() & {call["weight"], call.get("bias")}:
            return self._product(call, [call["input"], call["weight"]], powers, taken)
        return None

    def _sum(self, call: Call, those: Sequence[float], taken: TakenUp) -> float | None:
        numbers = [n for n in _numbers(call) if n is not None and n != 0]
        if base_name(call.operator) in ("add", "sub"):
            numbers = [call[side] for side in ("self", "other") if not isinstance(call[side], fx.Node)]
        elif call.get("max") is not None:
            return None
        if call.get("alpha", 1) != 1 or len(set(those)) > 1:
            return None
        if not any(numbers):
            return those[0]
        if those[0] != -1.0:
            return None
        self._take_eps(call, numbers[0], taken)
        return None if taken.reason else those[0]

    def _product(
        self, call: Call, factors: Sequence[Any], powers: Mapping[fx.Node, float], taken: TakenUp
    ) -> float | None:
        power = sum(powers.get(factor, 0.0) for factor in factors)
        is_taken = power and any(self._take(call, factor, power, taken) for factor in factors)
        return 0.0 if is_taken else power

    def _take(self, call: Call, node: Any, power: float, taken: TakenUp) -> bool:  # noqa: ANN401
        name, offset = self._parameters.get(node, ("", 0.0))
        return bool(name) and taken.take(name, Scale(-power, offset), call.node)

    def _where(self, call: Call) -> str:
        return self._trace.first_paths.get(call.where, call.where)

    def _take_eps(self, call: Call, eps: float | None, taken: TakenUp) -> None:
        """Find the attribute that holds an eps, or say that there is none."""
        where = self._where(call)
        held = [
            path
            for path, value in self._trace.floats.items()
            if path.rpartition(".")[0] == where and (value is eps or value == eps)
        ]
        named = [path for path in held if "eps" in path.rpartition(".")[2].lower()]
        if len(held) != 1:
            held = named
        if len(held) != 1:
            taken.reason = f"{call.place} adds {eps}, which no attribute of its module holds"
        else:
            taken.attributes.setdefault(held[0], set()).add(call.node)


def _is_check(node: fx.Node) -> bool:
    """Tell whether a call returns nothing."""
    return node.op == "call_function" and node.meta.get("val") is None


def _numbers(call: Call) -> list[Any]:
    """Return the arguments of a call that may hold an eps."""
    held = [call.get(key) for key in ("self", "other", "eps", "min") if key in call.arguments]
    return [value for value in held if not isinstance(value, (fx.Node, Tensor))]
