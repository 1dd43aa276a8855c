"""Repair of a cut: targets are recorded before it, weights are refitted after it, layer by layer as they run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_prune.compensation.least_squares import LeastSquares, Moments, best_fit
from lightning_prune.compensation.readers import Reader, readers_of, run_through, sampled, source_of_nan
from lightning_prune.criteria import Run
from lightning_prune.criteria.weights import wide
from lightning_prune.distributed import ranks
from lightning_prune.errors import NonFiniteError
from lightning_prune.model import masks
from lightning_prune.model.example import Example, tensors_in, walked

EXACT = 1e-10
"""Relative error below which a layer gives what it gave: the square of float32's resolution on sums of products."""


@dataclass(frozen=True)
class Wanted:
    """What a layer gave before the cut.

    Args:
        outputs: shape (groups, rows, outputs), without the bias.
        samples: rows are of so many samples, one after the other.
        calls: how often the layer ran; one that runs more than once is left alone.
    """

    outputs: Tensor
    samples: int
    calls: int = 1


@dataclass(frozen=True)
class Repair:
    """What repair did to one layer.

    Args:
        name: dense name of the weight.
        before: error of the cut layer on the samples held out, relative to its outputs.
        after: the same after the repair.
        damping: λ; None where the weight was left alone.
        reason: why it was left alone; empty where it was not.
    """

    name: str
    before: float
    after: float
    damping: float | None
    reason: str = ""

    @property
    def is_done(self) -> bool:
        """Whether the weight was written."""
        return self.damping is not None


@torch.no_grad()
def record(model: nn.Module, inputs: Run, repair: LeastSquares) -> dict[str, Wanted]:
    """Return what every layer that can be repaired gives, before a cut.

    Args:
        model: as it is before the event.
        inputs: runs it on one batch of samples along the first axis, as an Example does.
        repair: how much is looked at.

    Raises:
        NonFiniteError: what enters a layer is NaN or infinite.
    """
    targets: dict[str, Wanted] = {}
    parameters, most = masks.dense_parameters(model), _rows(model, repair)

    def see(name: str, reader: Reader, x: Tensor) -> None:
        if name not in parameters:  # computed from others
            return
        if name in targets:
            targets[name] = Wanted(targets[name].outputs, targets[name].samples, targets[name].calls + 1)
            return
        rows = sampled(reader, x, most, name).to(wide(x))
        if not bool(torch.isfinite(rows).all()):
            raise NonFiniteError(
                f"what enters {name.rpartition('.')[0] or 'the model'} is NaN or infinite on the samples for repair;"
                f" nothing was pruned. {source_of_nan(model)}. Repair can be left out"
            )
        weight = reader.matrix(parameters[name].detach())
        targets[name] = Wanted(rows @ weight.mT.to(rows.dtype), len(x))

    run_through(model, inputs, see)
    return targets


def record_or_say(model: nn.Module, inputs: Run, repair: LeastSquares) -> tuple[dict[str, Wanted], str]:
    """Do as :func:`record` where nobody has asked for it: in place of raising, return nothing and why, on all ranks."""
    targets: dict[str, Wanted] = {}
    try:
        targets, reason = record(model, inputs, repair), ""
    except Exception as error:  # whatever forward raises
        text = str(error).replace("; nothing was pruned", "").partition("\n")[0]
        reason = text or type(error).__name__
    ranks.agree()
    reason = next(filter(None, ranks.gathered(reason)), "")
    return ({}, reason) if reason else (targets, "")


def _rows(model: nn.Module, repair: LeastSquares) -> int:
    """Return how many rows of each layer are looked at: what they give stays within the memory of an event."""
    readers = [reader for module in model.modules() for reader in readers_of(module)]
    outputs = sum(reader.matrix(getattr(reader.module, reader.weight)).shape[:2].numel() for reader in readers)
    return max(64, min(repair.rows, repair.bytes_at_event // (4 * max(outputs, 1))))


@torch.no_grad()
def refit(model: nn.Module, inputs: Run, targets: Mapping[str, Wanted], repair: LeastSquares) -> list[Repair]:
    """Fit the kept weights of a cut model to what its layers gave before, in the order in which they run.

    Args:
        model: masked; the masks of the event are written.
        inputs: the same as :func:`record` saw.
        targets: what it returned.
        repair: the same.

    Returns:
        What was done, in the order in which the layers run.

    Changes:
        kept entries of weights, and biases.
    """
    parameters, live, most = masks.dense_parameters(model), masks.read(model), _rows(model, repair)
    repairs: dict[str, Repair] = {}

    def mend(name: str, reader: Reader, x: Tensor) -> None:
        weight, target = parameters[name], targets.get(name)
        if target is None or name in repairs:
            return
        if target.calls > 1:
            repairs[name] = Repair(name, 0.0, 0.0, None, "the layer runs more than once in a forward pass")
            return
        if not weight.requires_grad:
            repairs[name] = Repair(name, 0.0, 0.0, None, "the weight is frozen")
            return
        bias = None if reader.bias is None else reader.module._parameters.get(reader.bias)
        if bias is not None and not bias.requires_grad:
            bias = None
        rows = sampled(reader, x, most, name).to(target.outputs.dtype)
        start = reader.matrix(weight.detach())
        kept = reader.matrix(live[name]) if name in live else torch.ones_like(start, dtype=torch.bool)
        outputs = target.outputs
        if bias is not None:
            offset = bias.detach().view(len(start), -1)
            outputs = outputs + offset[:, None].to(outputs.dtype)
            rows = torch.cat([rows, rows.new_ones(*rows.shape[:2], 1)], -1)
            start = torch.cat([start, offset[..., None]], -1)
            kept = torch.cat([kept, kept.any(-1, keepdim=True)], -1)
        fitted, repairs[name] = _fitted(name, rows, outputs, start, kept, target.samples)
        if repairs[name].damping is None:
            return
        if bias is not None:
            bias.copy_(torch.where(kept[..., -1].flatten(), fitted[..., -1].flatten(), bias.flatten()).view_as(bias))
            fitted = fitted[..., :-1]
        weight.copy_(reader.fold(fitted))
        # the same sums need not give the same bits on another machine
        ranks.copy_from_first([weight] if bias is None else [weight, bias])

    run_through(model, inputs, mend)
    masks.zero_pruned(model)
    return list(repairs.values())


def _fitted(
    name: str, rows: Tensor, outputs: Tensor, start: Tensor, kept: Tensor, samples: int
) -> tuple[Tensor, Repair]:
    """Fit on the first three quarters of the samples, judge on the rest; sums run over all ranks."""
    whole, live = start, kept.any(2).any(0)[:, None] & kept.any(1).any(0)
    # what is gone from every group costs nothing: the sums grow with the square of the columns
    start, kept = (x[:, live.any(1)][..., live.any(0)] for x in (start, kept))
    rows, outputs = rows[..., live.any(0)], outputs[..., live.any(1)]
    each = rows.shape[1] // samples
    border = each * (samples - samples // 4)
    fitted_on = Moments.of(rows[:, :border], outputs[:, :border])
    judged_on = Moments.of(rows[:, border:], outputs[:, border:])
    ranks.check_same({"the layer to repair": name}, "name")
    for tensor in (*fitted_on.tensors(), *judged_on.tensors()):
        ranks.add_up(tensor)
    scale = max(float(judged_on.outputs[kept.any(-1)].sum()), 1e-30)
    if judged_on.error(start * kept, kept.any(-1)) <= EXACT * scale:
        return whole, Repair(name, 0.0, 0.0, None, "nothing is lost")
    weights, before, after, damping = best_fit(fitted_on, judged_on, start, kept)
    reason = "" if damping is not None else "no fit did better on the samples held out"
    fitted = torch.zeros_like(whole)
    fitted[:, live] = weights.flatten(1)
    return fitted, Repair(name, before / scale, after / scale, damping, reason)


def joined(batches: Sequence[Example], most: int) -> Example:
    """Return several batches as one of at most so many samples: those of the shapes that most samples have."""
    held = [list(tensors_in((batch.args, dict(batch.kwargs)))) for batch in batches]
    sizes = [next((len(tensor) for tensor in tensors if tensor.dim()), 0) for tensors in held]
    forms = [[(tensor.shape[1:], tensor.dtype) for tensor in tensors] for tensors in held]
    totals = [sum(size for size, other in zip(sizes, forms, strict=True) if other == form) for form in forms]
    first = totals.index(max(totals))
    alike = [tensors for tensors, form in zip(held, forms, strict=True) if form == forms[first]]
    places = iter(range(len(held[first])))

    def join(tensor: Tensor) -> Tensor:
        place = next(places)
        is_batch = tensor.dim() > 0 and len(tensor) == sizes[first]
        return torch.cat([tensors[place] for tensors in alike])[:most] if is_batch else tensor

    return walked(batches[first], join)
