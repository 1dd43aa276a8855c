"""Which channels or weights a layer misses least once the others have taken over for them."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_prune.compensation.least_squares import LeastSquares
from lightning_prune.compensation.readers import Reader, run_through, sampled, source_of_nan
from lightning_prune.criteria import Criterion, Run, SampleCriterion, Seen
from lightning_prune.criteria.weights import wide
from lightning_prune.distributed import ranks
from lightning_prune.errors import NonFiniteError, ScoringError
from lightning_prune.model import masks
from lightning_prune.values import check_number, check_whole

MAX_COLUMNS = 8_192
"""Of a layer's input: the moments of more take over half a gigabyte, and their inverse the cube of the columns."""

_TURNS = 1e10
"""Multiplications of the turns, the cubes of the layers' columns, that nobody has to ask for: seven seconds."""

_STEEPER = 1 + 1e-4
"""Factor by which a later loss is above an earlier one at least, so that float32 keeps the order of removal."""


@dataclass(frozen=True)
class Reconstruction(SampleCriterion):
    """How much worse a layer can reproduce its outputs without a channel, or a weight, at best.

    With W the weights of a layer, G = XᵀX / rows + λ m I of what enters it and m the mean of G's diagonal, the loss of
    the columns b of a channel is

        tr(W_b (G⁻¹_bb)⁻¹ W_bᵀ),

    what is left of the error when all other columns are fitted anew. The channel with the least goes first, W and G⁻¹
    become those of the layer without it, and so on to the last: its score is the loss at its turn, in parts of the
    layer's outputs, summed over the layers that read it. Single weights score w² / G⁻¹_jj, without turns.

    It looks at the samples of the last steps before an event, or of :func:`~lightning_prune.prune`'s data, as repair
    does, which it is made for: ``Recipe(criterion=Reconstruction(), repair=LeastSquares())``.

    Memory: 8 bytes times the square of a layer's columns (channels times taps), for all layers that read channels at
    once. Time: for n channels of k columns each, n c² k multiplications where c = n k: 1,536 units of a Linear take
    some seconds on one core.

    Args:
        samples: how many samples are looked at, at most, over all ranks.
        rows: how many rows (samples times positions) of each layer, at most, on each rank.
        damping: λ.

    Source: Hassibi and Stork 1993 (optimal brain surgeon), on the layer's own outputs as in Frantar and Alistarh 2022
    (optimal brain compression); in blocks as in Kurtic et al. 2023 (ZipLM).
    """

    samples: int = 256
    rows: int = 16_384
    damping: float = 1e-3

    def __post_init__(self) -> None:
        check_whole("Reconstruction.samples", self.samples, 16)
        check_whole("Reconstruction.rows", self.rows, 64)
        check_number("Reconstruction.damping", self.damping, above=0)

    @torch.no_grad()
    def seen(
        self, model: nn.Module, inputs: Run, names: Sequence[str], columns: Mapping[str, Mapping[str, Tensor]]
    ) -> Seen:
        """Return the scores by what enters the layers; see :meth:`SampleCriterion.seen`.

        Raises:
            NonFiniteError: what enters a layer is NaN or infinite.
            ScoringError: a layer has too many columns, or something cannot be scored since no
                input that tells of it is seen.
        """
        found = self._look(model, inputs, columns or names)
        parameters, live = masks.dense_parameters(model), masks.read(model)
        scores: dict[str, Tensor] = {}
        channels: dict[str, dict[int, float]] = {}
        for name, (reader, moments) in found.items():
            ranks.check_same({"the layer to look at": name}, "name")
            ranks.add_up(moments)
            weight = reader.matrix(parameters[name].detach())
            if not columns:
                inverse = _inverse(moments, self.damping).diagonal(dim1=-2, dim2=-1)[:, None]
                scores[name] = reader.fold(weight.square() / inverse[..., : weight.shape[-1]].to(wide(weight)))
            elif len(weight) == 1:  # a channel that passes through a grouped convolution is read behind it
                kept = reader.matrix(live[name])[0].any(0) if name in live else weight[0].new_ones(weight.shape[-1]) > 0
                for group, number in columns[name].items():
                    places = reader.matrix(number.to(weight.device))[0, 0]
                    # another recipe may have taken some taps of a channel that is there
                    places = torch.where(torch.isin(places, places[kept]), places, -1)
                    losses = removal_losses(weight[0], moments[0], places, kept, self.damping)
                    totals = channels.setdefault(group, {})
                    totals |= {channel: totals.get(channel, 0.0) + loss for channel, loss in losses.items()}
        if lacking := sorted(set(names) - scores.keys() - channels.keys()):
            raise ScoringError(
                f"{self} cannot score {lacking[0]}: no Linear, convolution or recurrent layer was seen that"
                f" {'reads its channels' if columns else 'has it'}. Exclude it, or take another criterion"
            )
        return Seen(scores, channels)

    def _look(self, model: nn.Module, inputs: Run, names: Container[str]) -> dict[str, tuple[Reader, Tensor]]:
        """Return the readers of these names in the order in which they run, with the second moments of their rows."""
        found: dict[str, tuple[Reader, Tensor]] = {}

        def see(name: str, reader: Reader, x: Tensor) -> None:
            if name not in names:
                return
            rows = sampled(reader, x, self.rows, name).to(wide(x))
            if rows.shape[-1] > MAX_COLUMNS:
                raise ScoringError(
                    f"{name} has {rows.shape[-1]:,} columns, and {self} takes at most {MAX_COLUMNS:,}: leave the layers"
                    " before it out with Targets(exclude=…), or take Fisher()"
                )
            if not bool(torch.isfinite(rows).all()):
                raise NonFiniteError(
                    f"what enters {name} is NaN or infinite; nothing was pruned. {source_of_nan(model)}"
                )
            if reader.bias is not None:
                rows = torch.cat([rows, rows.new_ones(*rows.shape[:2], 1)], -1)
            gram = rows.double().mT @ rows.double() / rows.shape[1]
            found[name] = reader, found[name][1] + gram if name in found else gram

        run_through(model, inputs, see)
        return found


def usual(
    model: nn.Module,
    inputs: Run,
    names: Sequence[str],
    columns: Mapping[str, Mapping[str, Tensor]],
    repair: LeastSquares,
) -> Criterion | None:
    """Return the scores of channels that are repaired, where nobody has asked for them; None: not so.

    That is where they would take long, in a network as large as ResNet-18, or cannot score all of them. Arguments are
    those of :meth:`SampleCriterion.seen`.
    """
    widths = [number.numel() // max(len(number), 1) for own in columns.values() for number in list(own.values())[:1]]
    if sum(width**3 for width in widths) > _TURNS:
        return None
    try:
        return Reconstruction(samples=repair.samples, rows=repair.rows).look(model, inputs, names, columns)
    except ScoringError:
        return None


def _inverse(moments: Tensor, damping: float) -> Tensor:
    ridge = damping * moments.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(1e-30)
    eye = torch.eye(moments.shape[-1], dtype=moments.dtype, device=moments.device)
    return torch.cholesky_inverse(torch.linalg.cholesky(moments + ridge[..., None, None] * eye))


def removal_losses(weight: Tensor, moments: Tensor, number: Tensor, live: Tensor, damping: float) -> dict[int, float]:
    """Return what the removal of each block of columns costs at its turn, the cheapest first.

    Args:
        weight: shape (outputs, columns).
        moments: of what enters the columns, and of further ones that never go; shape (at least columns, the same).
        number: of the block of each column, all blocks of one size; -1: never goes.
        live: bool; columns that are there at all.
        damping: the ridge, a share of the mean second moment.

    Returns:
        Number of the block -> what its removal adds to the squared error, in parts of the squared outputs; never less
        than that of one before it. In the order of removal.
    """
    blocks = number.unique().tolist()
    blocks = [block for block in blocks if block >= 0]
    if not blocks:
        return {}
    order = torch.cat([torch.nonzero(number == block).flatten() for block in blocks])
    others = torch.nonzero(live & (number < 0)).flatten()
    further = torch.arange(len(number), len(moments), device=number.device)
    place = torch.cat([order, others, further])
    # float32 and in place: 1,536 columns did not come to an end in float64 with copies
    inverse = _inverse(moments[place][:, place][None], damping)[0].float()
    w = torch.cat([weight, weight.new_zeros(len(weight), len(further))], 1)[:, place].float()
    count, size = len(blocks), len(order) // len(blocks)
    left = torch.ones(count, dtype=torch.bool, device=w.device)
    energy = float(((w.double() @ moments[place][:, place]) * w).sum().clamp_min(1e-30))
    losses: dict[int, float] = {}
    highest = 0.0
    for _ in range(count):
        of_blocks = w[:, : len(order)].unflatten(1, (count, size))
        if size == 1:
            costs = of_blocks[..., 0].square().sum(0) / inverse.diagonal()[:count]
        else:
            corners = inverse[: len(order), : len(order)].unflatten(1, (count, size)).unflatten(0, (count, size))
            corner = torch.linalg.inv(corners.diagonal(dim1=0, dim2=2).permute(2, 0, 1))
            costs = torch.einsum("onk,nkl,onl->n", of_blocks, corner, of_blocks)
        first = int(costs.masked_fill(~left, torch.inf).argmin())
        left[first] = False
        highest = max(float(costs[first]) / energy, highest * _STEEPER)
        losses[blocks[first]] = highest
        part = slice(first * size, (first + 1) * size)
        rows = torch.linalg.solve(inverse[part, part], inverse[part])
        w.addmm_(w[:, part].clone(), rows, alpha=-1)
        inverse.addmm_(inverse[:, part].clone(), rows, alpha=-1)
        inverse[part], inverse[:, part], w[:, part] = 0, 0, 0
        inverse[part, part] = torch.eye(size, dtype=w.dtype, device=w.device)
    return losses
