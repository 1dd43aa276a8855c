"""einsum: letters that meet are one axis; letters that vanish are summed over."""

from __future__ import annotations

from typing import Any

from torch import fx

from lightning_prune.graph.axes import Dim
from lightning_prune.graph.flow import Flow
from lightning_prune.graph.rules.contraction import contract, sum_over_width
from lightning_prune.graph.trace import Call

Place = tuple[fx.Node, int]
"""One axis of an operand."""


def einsum(call: Call, flow: Flow) -> Any:  # noqa: ANN401
    """A letter in the result goes on; one that is summed over needs a weight that masks make zero."""
    terms, _, made = call["equation"].replace(" ", "").partition("->")
    operands = terms.split(",")
    if "." in terms or any(len(set(letters)) < len(letters) for letters in operands):
        return flow.give_up(call, f"{call.place} has an equation with an ellipsis or a repeated letter")
    places: dict[str, list[Place]] = {}
    for letters, node in zip(operands, call["tensors"], strict=True):
        for axis, letter in enumerate(letters):
            places.setdefault(letter, []).append((node, axis))
    # Without an arrow the result has the letters that stand once, in alphabetical order, as torch defines it.
    made = made or "".join(sorted(letter for letter in set(terms) - {","} if terms.count(letter) == 1))
    is_product = len(operands) == 2 and all(map(flow.is_activation, call["tensors"]))
    for letter in places.keys() - set(made):
        weights = [place for place in places[letter] if not flow.is_activation(place[0])]
        others = [place for place in places[letter] if flow.is_activation(place[0])]
        if len(weights) == len(others) == 1 and len(operands) == 2:
            (node, axis), weight = others[0], weights[0]
            contract(call, flow, flow.of(node)[axis], *weight)
        elif is_product and len({node.meta["val"].shape[axis] for node, axis in others}) < len(others) == 2:
            (left, last), (right, beside) = others
            widths = flow.of(left)[last], flow.of(right)[beside]
            sum_over_width(call, flow, left, right, widths, left.meta["val"].shape[last])
        else:
            flow.freeze([flow.of(node)[axis] for node, axis in places[letter]], f"{call.place} sums over it")
    for letter in made:
        if all(not flow.is_activation(node) for node, _ in places[letter]):
            for node, axis in places[letter]:
                flow.produce(flow.of(node)[axis])
    later = [  # heads are in both operands and in the result, as the batch is
        place
        for letter, held in places.items()
        if is_product and (letter in made and len(held) == 2) == (flow.attention == "width")
        for place in held
    ]
    for node, axis in later:
        flow.defer(flow.of(node)[axis])
    out: list[Dim] = []
    for letter in made:
        # An axis of length 1 is broadcast, so that those of the full length make the result's.
        longest = max(node.meta["val"].shape[axis] for node, axis in places[letter])
        whole = [(node, axis) for node, axis in places[letter] if node.meta["val"].shape[axis] == longest]
        out.append(flow.join_all([flow.of(node)[axis] for node, axis in whole]))
    return tuple(out)
