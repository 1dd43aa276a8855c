"""Optimizer surgery: zero, forget and slice optimizer state; the only file that touches optimizer.state.

Three layouts of a state tensor are known. *Parameter-shaped* (momentum, moments, ``ax`` of ASGD, ``step_size`` of
Rprop …): follows every axis. *Reduced* (``row_var`` and ``col_var`` of Adafactor, cover vectors): one number for a
whole row or column, of length one along the reduced axes or without them. *Scalar* (``step``, ``eta`` …): stays.
Anything else, such as the square preconditioners of Shampoo or the block scales of 8-bit optimizers, belongs to no
single position and is refused by name.

L-BFGS is carried by forgetting its history: its pairs of steps and gradient differences describe the curvature of the
function before the event, and cutting coordinates out of them does not give pairs of the pruned one. Its next step is
a gradient step, and at pruned positions it stays at zero. The momentum of Muon has the parameter's shape and is
carried, but its step orthogonalises the whole matrix: it moves zeros (see :func:`keeps_zeros`), and slicing before
or after a step is not the same. The same holds for Adafactor, which clips by the norm of the whole update.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import LBFGS, Optimizer

from lightning_prune.distributed.shards import local, part
from lightning_prune.errors import OptimizerStateError

_SCALARS = frozenset({"step", "eta", "mu", "mu_product"})
"""Keys that hold one number for a whole parameter, even where the parameter itself is one number."""

_MEANS = {"row_var": (-1, True), "col_var": (-2, True), "exp_avg_sq_row": (-1, False), "exp_avg_sq_col": (-2, False)}
"""Keys that hold a mean over one axis: (that axis, whether it is kept with length one); Adafactor in torch and in
transformers."""

_KEEPS_ZEROS = frozenset(
    {
        torch.optim.Adadelta,
        torch.optim.Adafactor,
        torch.optim.Adagrad,
        torch.optim.Adam,
        torch.optim.AdamW,
        torch.optim.Adamax,
        torch.optim.ASGD,
        torch.optim.LBFGS,
        torch.optim.NAdam,
        torch.optim.RAdam,
        torch.optim.RMSprop,
        torch.optim.Rprop,
        torch.optim.SGD,
        torch.optim.SparseAdam,
    }
)

_OF_GRADIENTS = {
    **dict.fromkeys(("exp_avg", "momentum_buffer", "exp_inf", "grad_avg", "prev"), 1),
    **dict.fromkeys(("exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum", "variance", *_MEANS), 2),
    "ax": -1,
}
"""Keys that hold means of gradients (1) or of their squares (2); the mean of the parameter itself in ASGD (-1)."""

OptimizerReferences = dict[Tensor, dict[str, Any]]


class _Layout(NamedTuple):
    """How a state tensor follows its parameter: the parameter's axes that it has lost, and how."""

    reduced: tuple[int, ...] = ()
    keeps_axes: bool = True
    is_mean: bool = False

    def axis(self, parameter_axis: int) -> int:
        """Return the state's axis that follows this axis of the parameter."""
        return parameter_axis if self.keeps_axes else parameter_axis - sum(a < parameter_axis for a in self.reduced)


def zero_state(optimizer: Optimizer, masks: Mapping[Parameter, Tensor]) -> None:
    """Zero the state of pruned positions, so that nothing remembered there moves a weight again.

    A reduced state tensor is zeroed where every position that it sums up is pruned. L-BFGS forgets its history.

    Args:
        optimizer: any optimizer; parameters that it does not hold are left out.
        masks: bool masks by parameter, each of the parameter's shape; True = keep.

    Raises:
        OptimizerStateError: a state tensor follows its parameter in no known way; nothing has changed then.

    Changes:
        the state tensors, in place. ``step`` and other scalars stay.
    """
    held = [parameter for parameter in parameters_of(optimizer) if parameter in masks]
    if isinstance(optimizer, LBFGS):
        _forget_history(optimizer, held)
        return
    plan = [(tensor, layout, masks[p]) for p in held for _, tensor, layout in _state_tensors(optimizer, p, p.shape)]
    with torch.no_grad():
        for tensor, layout, mask in plan:
            keep = mask.any(dim=layout.reduced, keepdim=layout.keeps_axes) if layout.reduced else mask
            local(tensor).masked_fill_(~part(keep, tensor).to(tensor.device), 0)


def reset_state(optimizer: Optimizer, parameters: Iterable[Parameter]) -> None:
    """Forget the state of these parameters; the optimizer begins with them as at its first step.

    Changes:
        optimizer.state. Adagrad, which makes its state when it is built, gets a new one.
    """
    forget = set(parameters)
    held = [parameter for parameter in parameters_of(optimizer) if parameter in forget]
    if isinstance(optimizer, LBFGS):
        _forget_history(optimizer, held)
        return
    for parameter in held:
        state = optimizer.state.pop(parameter, {})
        if state and isinstance(optimizer, torch.optim.Adagrad):
            group = next(g for g in optimizer.param_groups if any(held is parameter for held in g["params"]))
            optimizer.state[parameter] = {
                "step": torch.zeros_like(state["step"]),
                "sum": torch.full_like(state["sum"], group["initial_accumulator_value"]),
            }


def slice_state(
    optimizer: Optimizer,
    keep: Mapping[Parameter, Mapping[int, Tensor]],
    old_shapes: Mapping[Parameter, torch.Size],
) -> None:
    """Cut the state to the positions that are kept. Parameter objects and ``step`` stay.

    For element-wise optimizers slicing before a step and after it give the same bits. A state tensor that is a mean
    over a shrunk axis (Adafactor) is scaled by old/new length: positions that were pruned before counted as zeros in
    it, so the estimate for the survivors stays what it was. L-BFGS forgets its history.

    Args:
        optimizer: any optimizer; parameters that it does not hold are left out.
        keep: kept indices (sorted int64) by axis, by parameter.
        old_shapes: the shape of each of these parameters before it was sliced.

    Raises:
        OptimizerStateError: a state tensor follows its parameter in no known way; nothing has changed then.

    Changes:
        optimizer.state: new tensors in place of the old ones, which stay as they were.
    """
    held = [parameter for parameter in parameters_of(optimizer) if parameter in keep]
    if isinstance(optimizer, LBFGS):
        _forget_history(optimizer, held)
        return
    cut = {
        parameter: {
            key: _cut(tensor, layout, keep[parameter], old_shapes[parameter])
            for key, tensor, layout in _state_tensors(optimizer, parameter, old_shapes[parameter])
        }
        for parameter in held
    }
    for parameter, tensors in cut.items():
        if tensors:
            optimizer.state[parameter] = {**optimizer.state[parameter], **tensors}


def rescale_state(optimizer: Optimizer, factors: Mapping[Parameter, float]) -> None:
    """Let the state of parameters that were multiplied be that of the gradients which they get from now on.

    A parameter that is c times as large computes the same with gradients that are 1/c of what they were: means of
    gradients are divided by c, means of their squares by c². What holds no gradients, such as the step sizes of Rprop,
    stays; so does what an unknown optimizer holds under another name.

    Args:
        optimizer: any optimizer; parameters that it does not hold are left out.
        factors: c by parameter.

    Changes:
        optimizer.state: new tensors in place of the old ones, which stay as they were.
    """
    for parameter in parameters_of(optimizer):
        if parameter in factors and parameter in optimizer.state:
            state, factor = optimizer.state[parameter], factors[parameter]
            # momentum that SGD has not made yet is None; that of RMSprop is of steps, which have no unit
            held = {key for key in _OF_GRADIENTS if state.get(key) is not None}
            held -= {"momentum_buffer"} if "square_avg" in state else set()
            scaled = {key: state[key] / factor ** _OF_GRADIENTS[key] for key in held}
            optimizer.state[parameter] = {**state, **scaled}


def _cut(tensor: Tensor, layout: _Layout, keep: Mapping[int, Tensor], old_shape: torch.Size) -> Tensor:
    followed = {layout.axis(axis): indices for axis, indices in keep.items() if axis not in layout.reduced}
    cut = take(tensor, followed)
    if layout.is_mean:
        for axis in keep.keys() & set(layout.reduced):
            cut = cut * (old_shape[axis] / len(keep[axis]))
    return cut


def take(tensor: Tensor, keep: Mapping[int, Tensor]) -> Tensor:
    """Return a new tensor with the kept indices of each given axis, in the memory format of ``tensor``."""
    taken = tensor.detach().clone() if not keep else tensor.detach()
    for axis, indices in keep.items():
        taken = taken.index_select(axis, indices.to(taken.device))
    if tensor.layout is not torch.strided or tensor.is_contiguous():
        return taken
    for dim, memory_format in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        if tensor.dim() == dim and tensor.is_contiguous(memory_format=memory_format):
            return taken.contiguous(memory_format=memory_format)
    return taken


def check_supported(optimizer: Optimizer, parameters: Iterable[Parameter]) -> None:
    """Refuse an optimizer whose present state cannot be carried over an event.

    Every optimizer of torch.optim passes. One that is not known here is judged by the state tensors that it has, so
    ask again after its first step.

    Raises:
        OptimizerStateError: a state tensor follows its parameter in no known way.
    """
    wanted = set(parameters)
    if not isinstance(optimizer, LBFGS):
        for parameter in parameters_of(optimizer):
            if parameter in wanted:
                list(_state_tensors(optimizer, parameter, parameter.shape))


def keeps_zeros(optimizer: Optimizer) -> bool:
    """Say whether ``step()`` leaves a zero weight with zero gradient and zero state at exactly zero.

    True for every optimizer of torch.optim with ``eps`` > 0, weight decay included, but not for Muon, which
    orthogonalises the whole matrix. A type that is not known here, a subclass too, counts as one that moves zeros.
    """
    if type(optimizer) not in _KEEPS_ZEROS:
        return False
    values = (group.get("eps", 1.0) for group in optimizer.param_groups)
    return not any(eps == 0 for value in values for eps in (value if isinstance(value, tuple) else (value,)))


def parameters_of(optimizer: Optimizer) -> list[Parameter]:
    """Return the parameters that the optimizer holds, in the order of its param groups."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def references(optimizer: Optimizer) -> OptimizerReferences:
    """Return the state as it stands, by reference: enough to undo :func:`slice_state`, which writes into nothing."""
    return {parameter: dict(state) for parameter, state in optimizer.state.items()}


def copy_state(optimizer: Optimizer, parameters: Iterable[Parameter]) -> None:
    """Put copies in the place of the state tensors of these parameters.

    What :func:`references` returned then stays as it is when :func:`zero_state` writes.

    Changes:
        optimizer.state.
    """
    for parameter in parameters:
        state = optimizer.state.get(parameter)
        if state:
            optimizer.state[parameter] = {k: v.clone() if isinstance(v, Tensor) else v for k, v in state.items()}


def put_back(optimizer: Optimizer, held: OptimizerReferences) -> None:
    """Make the state what :func:`references` returned.

    Changes:
        optimizer.state.
    """
    optimizer.state.clear()
    optimizer.state.update({parameter: dict(state) for parameter, state in held.items()})
    if isinstance(optimizer, LBFGS):
        optimizer._numel_cache = None


def _forget_history(optimizer: LBFGS, touched: list[Parameter]) -> None:
    if touched:
        optimizer.state.clear()
        optimizer._numel_cache = None


def _state_tensors(
    optimizer: Optimizer, parameter: Parameter, shape: torch.Size
) -> Iterator[tuple[str, Tensor, _Layout]]:
    """Yield (key, tensor, layout) of each state tensor that follows the parameter, which has or had this shape."""
    for key, value in optimizer.state.get(parameter, {}).items():
        if isinstance(value, list | tuple | dict) and _holds_tensors(value):
            raise _refusal(optimizer, key, f"a {type(value).__name__} of tensors", shape)
        if not isinstance(value, Tensor) or key in _SCALARS:
            continue
        layout = _layout(key, value.shape, shape)
        if value.numel() == 1 and value.shape != shape and not (layout and layout.is_mean):
            continue
        if layout is None:
            raise _refusal(optimizer, key, f"a tensor of shape {tuple(value.shape)}", shape)
        if not (value.is_floating_point() or value.is_complex()):
            raise _refusal(
                optimizer, key, f"a tensor of type {value.dtype}, where zero may have another meaning", shape
            )
        yield key, value, layout


def _holds_tensors(values: list[Any] | tuple[Any, ...] | dict[Any, Any]) -> bool:
    items = values.values() if isinstance(values, dict) else values
    return any(
        _holds_tensors(item) if isinstance(item, list | tuple | dict) else isinstance(item, Tensor) and item.numel() > 1
        for item in items
    )


def _layout(key: str, state: torch.Size, parameter: torch.Size) -> _Layout | None:
    if key in _MEANS and len(parameter) > 1:
        axis, keeps_axis = _MEANS[key]
        axis += len(parameter)
        rest = (1,) if keeps_axis else ()
        if state == (*parameter[:axis], *rest, *parameter[axis + 1 :]):
            return _Layout((axis,), keeps_axis, is_mean=True)
    if state == parameter:
        return _Layout()
    if len(state) == len(parameter) and all(s in (1, p) for s, p in zip(state, parameter, strict=True)):
        return _Layout(tuple(axis for axis, (s, p) in enumerate(zip(state, parameter, strict=True)) if s != p))
    return None


def _refusal(optimizer: Optimizer, key: str, found: str, shape: torch.Size) -> OptimizerStateError:
    return OptimizerStateError(
        f"{type(optimizer).__name__} keeps {found} in its state {key!r} for a parameter of shape {tuple(shape)}: it"
        " follows the parameter in no way that pruning could carry. Use optimizer_policy=Reset() (the state is"
        " forgotten at each event) or Keep(), and compact without this optimizer; or take an optimizer whose state"
        " has the parameter's shape, such as torch.optim.AdamW or SGD"
    )


def hyperparameters(optimizer: Optimizer) -> list[dict[str, Any]]:
    """Return what each param group says besides its parameters, by reference."""
    return [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]


def put_back_hyperparameters(optimizer: Optimizer, held: Sequence[Mapping[str, Any]]) -> None:
    """Make the hyperparameters what :func:`hyperparameters` returned; a param group that was added since stays.

    A rate that is a tensor is written in place: a captured graph or a scheduler may hold it.

    Changes:
        optimizer.param_groups.
    """
    for group, values in zip(optimizer.param_groups, held, strict=False):
        for key in group.keys() - values.keys() - {"params"}:
            del group[key]
        for key, value in values.items():
            if isinstance(value, Tensor) and isinstance(group.get(key), Tensor):
                group[key].copy_(value)
            else:
                group[key] = value
