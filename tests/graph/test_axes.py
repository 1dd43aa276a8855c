"""The solver against plain Python: components, freezes, and units by signature."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_prune.graph._units import signatures
from lightning_prune.graph.axes import Axes, Fixed, components
from lightning_prune.graph.rules.reshape import blocks

Edges = list[tuple[int, int]]


def components_one_by_one(size: int, edges: Edges) -> list[int]:
    label = list(range(size))
    for _ in range(size):
        for a, b in edges:
            label[a] = label[b] = min(label[a], label[b])
    return label


@given(st.integers(1, 30).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.tuples(*[st.integers(0, n - 1)] * 2)))))
def test_components_are_those_of_plain_relaxation(graph: tuple[int, Edges]):
    size, edges = graph
    a, b = np.array(edges, dtype=np.int64).reshape(-1, 2).T
    assert components(size, a, b).tolist() == components_one_by_one(size, edges)


@pytest.mark.parametrize("order", ["forward", "backward", "random"])
def test_components_of_a_long_chain_take_few_rounds(order: str):
    size = 100_000
    nodes = {"forward": np.arange(size), "backward": np.arange(size)[::-1]}.get(order)
    nodes = np.random.default_rng(0).permutation(size) if nodes is None else nodes
    assert not components(size, nodes[1:], nodes[:-1]).any()


def test_freezing_keeps_the_first_reason_and_spreads_over_joins():
    axes = Axes({"a": (3,), "b": (3,), "c": (3,)})
    a, b, c = (axes.atoms(name, 0) for name in "abc")
    axes.join(a, b)
    axes.freeze(b[:1], "first")
    axes.freeze(a, "second")
    assert axes.end_pass()
    assert [one.reason for one in signatures(axes)] == ["first", "second", ""]
    assert axes.settle(b) == Fixed("first")
    assert axes.is_live(c)
    axes.begin_pass()
    axes.end_pass()
    assert not axes.is_live(a), "freezes stay"


def test_fixed_entries_of_a_concatenation_freeze_what_meets_them_and_join_nothing():
    axes = Axes({"a": (2,), "b": (5,)})
    mixed = np.concatenate([axes.atoms("a", 0), axes.fill(Fixed("given"), 3)])
    axes.join(mixed, axes.atoms("b", 0))
    axes.end_pass()
    found = {one.reason: [atoms.tolist() for atoms in one.atoms] for one in signatures(axes)}
    assert found == {"": [[[0], [1]], [[2], [3]]], "given": [[[4], [5], [6]]]}


def test_units_of_the_same_shape_share_a_signature():
    axes = Axes({"conv": (4, 2), "fc": (3, 8)})
    rows, columns = axes.atoms("conv", 0), axes.atoms("fc", 1)
    axes.join(np.repeat(rows, 2), columns)
    axes.end_pass()
    first = signatures(axes)[0]
    assert [axes.slots[slot] for slot in first.slots] == [("conv", 0), ("fc", 1)]
    assert (first.atoms[1] - columns[0]).tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ((2, 8, 3, 3), (2, 72), [([0], [0]), ([1, 2, 3], [1])]),
        ((2, 5, 24), (2, 5, 3, 2, 4), [([0], [0]), ([1], [1]), ([2], [2, 3, 4])]),
        ((2, 6, 4, 1), (3, 4, 4), [([0, 1], [0, 1]), ([2], [2])]),
        ((1, 8, 1, 1), (1, 8), [([1], [1])]),
        ((), (1,), []),
    ],
)
def test_blocks_of_a_reshape(
    before: tuple[int, ...], after: tuple[int, ...], expected: list[tuple[list[int], list[int]]]
):
    assert blocks(before, after) == expected
