"""The heads of attentions as pairs of slots: which weights make them, and which read them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import nn

from lightning_prune.graph._slots import Block, SlotWalk
from lightning_prune.graph.trace import trace
from lightning_prune.model.example import Inputs


@dataclass(frozen=True, eq=False)
class Slots:
    """The slots of one head in one weight: the rows that make them, or the columns that read them.

    Attributes:
        weight: dense name.
        at: of each slot, the flat index of its first entry in the weight; shape (slots,).
        along: what is added for the entries of one slot; shape (others,).
        biases: dense name, and flat index of each slot in it.
        where: path of the module that multiplies with it.
        places: of each slot, its number among what the module gives, or takes.
        is_read: whether these are columns.
    """

    weight: str
    at: np.ndarray
    along: np.ndarray
    biases: tuple[tuple[str, np.ndarray], ...]
    where: str
    places: np.ndarray
    is_read: bool

    @property
    def entries(self) -> np.ndarray:
        """Flat indices in the weight; shape (slots, others)."""
        return self.at[:, None] + self.along

    @classmethod
    def of(cls, walk: SlotWalk, block: Block) -> Slots:
        """Return where the slots of a block lie."""
        use = next(u for u in reversed(walk.uses) if u.first <= block[0])
        places, start = np.array(block) - use.first, walk.starts[use.name]
        is_read = bool(places[0] >= len(use.rows))
        if is_read:
            places = places - len(use.rows)
            at, along = use.rows[0] + use.columns[places] - start, use.rows - use.rows[0]
            return cls(use.name, at, along, (), use.where, places, True)
        biases = list[tuple[str, np.ndarray]]()
        for added in use.biases:
            name, *others = dict.fromkeys(walk.weight_at(int(entry)) for entry in added[places])
            walk.tied |= dict.fromkeys(others, use.where)  # a bias that is put together of several within a head
            biases.append((name, added[places] - walk.starts[name]))
        return cls(use.name, use.rows[places] - start, use.columns, tuple(biases), use.where, places, False)


@dataclass(frozen=True, eq=False)
class HeadPair:
    """Slots that are multiplied with each other and summed over: where one side is turned, the other is turned back.

    Attributes:
        place: path of the module whose code multiplies them.
        left: queries, or values.
        right: keys, or the columns that read the values.
    """

    place: str
    left: tuple[Slots, ...]
    right: tuple[Slots, ...]

    @property
    def is_of_values(self) -> bool:
        """Whether it is a value and what reads it."""
        return any(slots.is_read for slots in self.right)


def head_pairs(model: nn.Module, example: Inputs) -> tuple[list[HeadPair], dict[str, str]]:
    """Find the heads whose slots can be turned: nothing but their layout, and numbers, stand between the weights.

    Args:
        model: any module that torch.export accepts.
        example: arguments of its forward.

    Returns:
        the pairs, and what stays as it is -> why.

    Raises:
        GraphError: torch.export refuses the model or these inputs.
    """
    walk = SlotWalk(trace(model, example))
    near: dict[Block, list[Block]] = {}
    for left, right in walk.edges:
        near.setdefault(left, []).append(right)
        near.setdefault(right, []).append(left)
    pairs, side = list[HeadPair](), dict[Block, int]()
    for (start, _), where in walk.edges.items():
        if start in side:
            continue
        side[start], together, is_even = 0, [start], True
        for block in together:
            for other in near[block]:
                if other not in side:
                    side[other] = 1 - side[block]
                    together.append(other)
                is_even &= side[other] != side[block]
        slots = [Slots.of(walk, block) for block in together]
        reasons = [walk.reasons[int(number)] for block in together for number in walk.why[list(block)] if number]
        names = (*(s.weight for s in slots), *(bias for s in slots for bias, _ in s.biases))
        reasons += [f"{walk.tied[name]} uses {name} as well" for name in names if name in walk.tied]
        reasons += [] if is_even else ["query and key come from one weight"]
        kinds = {(side[block], s.is_read) for block, s in zip(together, slots, strict=True)}
        reasons += [] if len(kinds) == 2 else ["key and value come from one weight"]
        what = "value" if any(s.is_read for s in slots) else "query and key"
        if reasons:
            walk.stayed.setdefault(f"{what} of {where or 'the model itself'}", reasons[0])
        elif len(start) > 1:
            sides = ([s for s, block in zip(slots, together, strict=True) if side[block] == at] for at in (0, 1))
            pairs.append(HeadPair(where, *map(tuple, sides)))
    return pairs, walk.stayed
