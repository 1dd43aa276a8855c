"""Turn the slots within attention heads, so that the last of them matter least."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_prune.compaction.resize import Undo
from lightning_prune.compaction.rotation import ExactChange, set_values
from lightning_prune.errors import NonFiniteError
from lightning_prune.graph.heads import HeadPair, Slots
from lightning_prune.model.masks import dense_names, locate

FLOOR = 1e-8
"""Added to second moments, as a share of their mean. A direction in which nothing happens is turned by at most 1e4
times what others are, which float32 still holds."""

Side = tuple[int, int]
"""Number of a pair, and 0 for its left side, 1 for its right one."""


class HeadMoments:
    """Second moments of the slots of heads, over whatever the model runs on meanwhile.

    Of queries and of keys as their layers give them, of values as their attention has averaged them. What all keys have
    in common is taken away: it adds the same to all scores of a query. Where no layer of its own multiplies, the
    moments are those that its weights give of white noise.

    Args:
        model: dense; its ``nn.MultiheadAttention`` call their projections meanwhile.
        pairs: of it.
    """

    def __init__(self, model: nn.Module, pairs: Sequence[HeadPair]) -> None:
        self._pairs = pairs
        self._of_weights: dict[Side, Tensor] = {}
        self._seen: dict[Side, tuple[int, Tensor, Tensor]] = {}
        jobs: dict[tuple[nn.Module, int], list[tuple[Side, Slots, Tensor]]] = {}
        flat = _Flat(model)
        for at, pair in enumerate(pairs):
            for side, several in enumerate((pair.left, pair.right)):
                for slots in several:
                    values = torch.cat([flat[name][entries] for name, entries in _tensors(slots)], 1)
                    square = self._of_weights.get((at, side), 0) + values @ values.T
                    self._of_weights[at, side] = square
                    module, own = model.get_submodule(slots.where), locate(model, slots.weight)[0]
                    is_attention = isinstance(module, nn.MultiheadAttention)
                    is_layer = module is own and len(list(module.parameters())) <= 2
                    if (is_attention or is_layer) and slots.is_read == pair.is_of_values:
                        # the layer that reads values sees them averaged, which is the left side
                        seen_as = (at, 0 if slots.is_read else side)
                        jobs.setdefault((module, side * is_attention), []).append((seen_as, slots, values.float()))
        self._handles = [
            module.register_forward_pre_hook(partial(self._see, several, number), with_kwargs=True)
            for (module, number), several in jobs.items()
        ]

    def _see(
        self,
        jobs: Sequence[tuple[Side, Slots, Tensor]],
        number: int,
        _: nn.Module,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> None:
        name = ("query", "key", "value")[number]
        given: Tensor = args[number] if len(args) > number else kwargs.get(name, next(iter(kwargs.values())))
        x = given.detach().flatten(0, -2).float()
        for side, slots, values in jobs:
            weight, bias = (
                values[:, : len(slots.along)].to(x.device),
                values[:, len(slots.along) :][:, :1].sum(1).to(x.device),
            )
            y = (x[:, torch.from_numpy(slots.places)] if slots.is_read else x @ weight.T + bias).double().cpu()
            count, total, square = self._seen.get(side, (0, torch.zeros(()), torch.zeros(())))
            self._seen[side] = count + len(y), total + y.sum(0), square + y.T @ y

    def stop(self) -> None:
        """Look away."""
        for handle in self._handles:
            handle.remove()

    def turns(self) -> list[tuple[Tensor, Tensor]]:
        """Return by pair a matrix for its left side, (slots, slots), and the share of each slot, the largest first.

        T with TᵀAT = T⁻¹BT⁻ᵀ = diag(s), A and B the moments of both sides: the first n slots give the best product that
        n slots can give.
        """
        turns = list[tuple[Tensor, Tensor]]()
        for at in range(len(self._pairs)):
            roots, inverse = list[Tensor](), list[Tensor]()
            for side in ((at, 0), (at, 1)):
                moments = self._of_weights[side]
                if side in self._seen:
                    count, total, moments = self._seen[side]
                    if side[1] == 1:  # keys
                        moments = moments - torch.outer(total, total) / count
                if not bool(moments.isfinite().all()):
                    raise NonFiniteError(
                        f"what enters {self._pairs[at].place} is NaN or infinite on the data; nothing was rotated. Look"
                        " at the data and at the weights"
                    )
                values, directions = torch.linalg.eigh(moments)
                values = values.clamp(min=0)
                lengths = (values + FLOOR * values.mean() + torch.finfo(values.dtype).tiny).sqrt()
                roots.append(directions * lengths)
                inverse.append(directions / lengths)
            u, s, _ = torch.linalg.svd(roots[0].T @ roots[1])
            turns.append((inverse[0] @ u * s.sqrt(), s.square() / s.square().sum()))
        return turns


@dataclass(frozen=True, eq=False)
class HeadTurn(ExactChange):
    """Pairs of a model, and how they are turned.

    Args:
        pairs: of query and key, of value and what reads it.
        turns: by pair a matrix for its left side, (slots, slots), float64.
    """

    pairs: Sequence[HeadPair]
    turns: Sequence[Tensor]

    @torch.no_grad()
    def apply(self, model: nn.Module, undo: Undo) -> None:
        """Turn the slots in place.

        Changes:
            the values of the weights and of their biases; the log.
        """
        flat = _Flat(model)
        for pair, turn in zip(self.pairs, self.turns, strict=True):
            for several, matrix in ((pair.left, turn.T), (pair.right, torch.linalg.inv(turn))):
                for name, entries in (tensor for slots in several for tensor in _tensors(slots)):
                    flat[name][entries] = matrix @ flat[name][entries]
        for name, values in flat.items():
            set_values(model, undo, name, lambda x, values=values: values.to(x.device).view_as(x))


class _Flat(dict[str, Tensor]):
    """Weights by dense name as vectors of float64, copied when they are asked for."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._named = dense_names(model)

    def __missing__(self, name: str) -> Tensor:
        self[name] = self._named[name].detach().double().cpu().flatten().clone()
        return self[name]


def _tensors(slots: Slots) -> list[tuple[str, Tensor]]:
    """Return weight and biases of slots: dense name, and flat indices of shape (slots, entries of each)."""
    biases = ((name, at[:, None]) for name, at in slots.biases)
    return [(name, torch.from_numpy(at)) for name, at in ((slots.weight, slots.entries), *biases)]
