"""Apply a plan: smaller layers and smaller optimizer state, in place, all or nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_prune.compaction import resize
from lightning_prune.compaction._entries import Entries
from lightning_prune.compaction._equivalence import Arguments
from lightning_prune.compaction.plan import Compaction, remember
from lightning_prune.compaction.trial import Proof, prove
from lightning_prune.errors import CompactionError
from lightning_prune.model.caches import dicts_of_tensors, empty, refilled
from lightning_prune.model.caches import put_back as put_dicts_back
from lightning_prune.model.example import Example, Inputs, walked
from lightning_prune.model.masks import dense_parameters
from lightning_prune.model.state import kept_state
from lightning_prune.model.summary import as_evaluated
from lightning_prune.optimizer.surgery import copy_state, put_back, references, rescale_state, slice_state, zero_state


@dataclass(frozen=True)
class CompactionReport:
    """What a removal did.

    Args:
        parameters_before: number of parameters.
        parameters_after: number of parameters left.
        removed: channel group -> (channels removed, channels before).
        errors: precision -> largest relative error between the masked and the compact model; empty when no example
            inputs were given.
        put_back: channel group of the plan whose removal was not exact -> why. It keeps its width, with the planned
            channels at zero.
        changes: precision -> largest relative change of the outputs, against the masked model, by removing the channel
            groups that are inexact by nature; empty when the plan has none.
    """

    parameters_before: int
    parameters_after: int
    removed: Mapping[str, tuple[int, int]]
    errors: Mapping[str, float] = field(default_factory=dict)
    put_back: Mapping[str, str] = field(default_factory=dict)
    changes: Mapping[str, float] = field(default_factory=dict)


def compact(
    model: nn.Module,
    plan: Compaction,
    example_inputs: Inputs | None = None,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    tolerance: float = 1e-9,
) -> CompactionReport:
    """Remove the channels of a plan from a model, in place and atomically.

    With example inputs the masked and the compact model are first compared on copies, see
    :class:`lightning_prune.compaction._equivalence.Comparison`. Where they differ, because the code holds a size
    that the graph does not show, the channel groups at fault are put back: they keep their width, with the planned
    channels at zero, and the report names them. Channel groups over which a normalisation runs, which a plan holds
    only by ``allow_inexact``, are cut last: they have to run, and their change of the outputs is reported. Whatever
    goes wrong, an interrupt from the keyboard included, model and optimizers are left byte for byte as they were.

    Args:
        model: the model that the plan was made for, dense or masked; masks that are attached shrink with it.
        plan: what goes.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments of ``forward``; None: no check.
        optimizer: one or several, whose state is sliced too.
        example_kwargs: keyword arguments of ``forward``.
        tolerance: largest relative error allowed at float64 where a removal is exact by nature.

    Returns:
        Sizes before and after, the errors and changes that were measured, and what was put back.

    Raises:
        CompactionError: the plan is for another model, the model is on the meta device or on several, or no channel
            group of the plan can be removed exactly.
        OptimizerStateError: the state of an optimizer cannot be sliced.

    Changes:
        ``data`` and ``grad`` of parameters (the Parameter objects stay), buffers, masks, size attributes of layers,
        optimizer state (sliced, and zero where a put-back channel is); the plan stays on the model, composed with
        earlier ones. A DistributedDataParallel wrapper
        built before has to be built anew.

    Example:
        >>> from lightning_prune import channel_groups
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> groups = channel_groups(net, torch.zeros(1, 4))
        >>> plan = Compaction.from_keep(groups, {"0": [0, 2, 5]})
        >>> report = compact(net, plan, torch.zeros(1, 4))
        >>> net[0], report.parameters_before, report.parameters_after
        (Linear(in_features=4, out_features=3, bias=True), 58, 23)
    """
    if not isinstance(plan, Compaction):
        raise TypeError(f"plan must be a Compaction, as from_keep, from_masks and from_json return, got {plan!r:.80}")
    optimizers = [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer or ())
    for one in optimizers:
        if not isinstance(one, Optimizer):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer, several of them or None, got {one!r}")
    plan.check_fits(model)
    at: dict[str, str] = {}
    for name, parameter in dense_parameters(model).items():
        at.setdefault(str(parameter.device), name)
    if "meta" in at:
        raise CompactionError(
            f"{at['meta']} is on the meta device, so there are no values to keep: bring {type(model).__name__} to a"
            " device with its weights first, or call plan.rebuild(model) for the shapes alone"
        )
    if len(at) > 1:
        where = ", ".join(f"{name} on {device}" for device, name in at.items())
        raise CompactionError(f"{type(model).__name__} is on {len(at)} devices ({where}): move it to one first")
    before = sum(parameter.numel() for parameter in model.parameters())
    with resize.all_or_nothing() as undo:
        proof, inputs = Proof(plan, {}, {}, {}), None
        if example_inputs is not None or example_kwargs:
            example = Example.of(() if example_inputs is None else example_inputs)
            inputs = example.args, {**example.kwargs, **(example_kwargs or {})}
            if (first := next(model.parameters(), None)) is not None:
                inputs = walked(inputs, lambda tensor: tensor.to(first.device))
            proof = prove(model, plan, inputs, tolerance)
        if proof.stay:
            _zero(model, plan.only(proof.stay).masked, optimizers, undo)
        _cut(model, proof.cut, optimizers, undo)
        remember(model, proof.cut, undo)
        if inputs is not None:
            _empty_caches(model, inputs, undo)
        removed = {name: (removal.removed, removal.size) for name, removal in proof.cut.removals.items()}
        after = sum(parameter.numel() for parameter in model.parameters())
        return CompactionReport(before, after, removed, proof.errors, proof.stay, proof.changes)


def _empty_caches(model: nn.Module, inputs: Arguments, undo: resize.Undo) -> None:
    """Empty what the model has cached of its larger self, and see it run: the proof was made on copies."""
    held = dicts_of_tensors(model)

    @torch.no_grad()
    def run() -> None:
        with as_evaluated(model), kept_state(model):
            model(*inputs[0], **inputs[1])

    undo.append(partial(put_dicts_back, model, held))
    if held.keys() == set(caches := refilled(model, run)):
        return
    try:
        run()
    except Exception as error:
        others = ", ".join(sorted(held.keys() - set(caches)))
        raise CompactionError(
            f"the compact model does not run: {type(error).__name__}: {error}. {others} holds tensors that seem to have"
            " been computed before the removal; empty it first, or make it a buffer"
        ) from error
    empty(model, caches)


def _zero(model: nn.Module, entries: Entries, optimizers: Sequence[Optimizer], undo: resize.Undo) -> None:
    """Zero entries of the parameters, and what optimizers remember of them, which would move them again."""
    resize.zero(model, entries, undo)
    parameters = dense_parameters(model)
    keep: dict[nn.Parameter, Tensor] = {}
    for name in entries.keys() & parameters.keys():
        keep[parameters[name]] = mask = torch.ones_like(parameters[name], dtype=torch.bool)
        for axis, gone in entries[name].items():
            mask.index_fill_(axis, torch.tensor(gone, device=mask.device), False)
    for one in optimizers:
        undo.append(partial(put_back, one, references(one)))
        copy_state(one, keep)
        zero_state(one, keep)


def _cut(model: nn.Module, plan: Compaction, optimizers: Sequence[Optimizer], undo: resize.Undo) -> None:
    parameters = dense_parameters(model)
    shapes = {parameters[name]: parameters[name].shape for name in plan.keep if name in parameters}
    resize.cut(model, plan.keep, plan.attributes, undo, plan.factors)
    keep = {
        parameters[name]: {axis: torch.tensor(kept) for axis, kept in axes.items()}
        for name, axes in plan.keep.items()
        if name in parameters
    }
    for one in optimizers:
        undo.append(partial(put_back, one, references(one)))
        slice_state(one, keep, shapes)
        rescale_state(one, {parameters[name]: resize.product(several) for name, several in plan.factors.items()})
