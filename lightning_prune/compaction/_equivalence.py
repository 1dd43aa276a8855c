"""Proof that a compact model computes what the masked one does: on copies, in two precisions, on two batches."""

import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_prune.errors import CompactionError
from lightning_prune.model.attention import without_fast_path
from lightning_prune.model.caches import empty, refilled, tensors_beside
from lightning_prune.model.example import tensors_in, walked
from lightning_prune.model.masks import fold
from lightning_prune.model.plain_copy import plain_copy
from lightning_prune.model.state import kept_state

Arguments = tuple[tuple[Any, ...], Mapping[str, Any]]
"""Positional and keyword arguments of ``forward``."""

_SLACK_32 = 1e6
"""How much more error float32 is allowed; its rounding is 5e8 times coarser than that of float64."""

ANY_FINITE = sys.float_info.max / _SLACK_32
"""A tolerance for removals that are inexact by nature: the compact model must run and give outputs of the same shapes,
finite where those of the masked one are."""


class Mismatch(CompactionError):
    """The compact model raises, or computes something else.

    Attributes:
        path: the innermost module that raises, or the first that gives other values of the same shape.
        finished: paths of the module calls that had ended by then, the last one at the end.
        has_raised: which of the two.
    """

    def __init__(self, text: str, path: str, finished: Sequence[str], has_raised: bool) -> None:
        super().__init__(text)
        self.path, self.finished, self.has_raised = path, tuple(finished), has_raised


class _AtFloat64(TorchDispatchMode):
    """What a model's code casts to float32, as norms and softmaxes of transformers do, stays at float64.

    Otherwise sums over fewer channels would differ by the rounding of float32, and nothing could be said of the rest.
    """

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        kwargs = dict(kwargs or {})
        if kwargs.get("dtype") is torch.float32:
            kwargs["dtype"] = torch.float64
        return func(*args, **kwargs)


class Change(Protocol):
    """A plan, or a part of it: what it leaves of a model's outputs is computed twice."""

    def mask(self, model: nn.Module) -> object:
        """Zero what would go, in place."""
        ...

    def rebuild(self, model: nn.Module) -> nn.Module:
        """Carry it out in place, and return the model."""
        ...


class Comparison:
    """A model under the masks of a plan, beside which parts of the plan are cut from copies.

    Args:
        model: as it is before the removal, masked or not; it is copied, not touched.
        plan: what would be removed.
        inputs: of the model.

    Raises:
        CompactionError: the masked model does not run on the inputs.
    """

    def __init__(self, model: nn.Module, plan: Change, inputs: Arguments) -> None:
        self._inputs = inputs
        self._start = fold(plain_copy(model)).eval()
        self._caches = refilled(self._start, lambda: _run(self._start, inputs))
        plan.mask(self._start)
        self._masked = plain_copy(self._start)
        floats = [tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point()]
        dtypes = [torch.float32, torch.float64]
        if any(tensor.device.type == "mps" for tensor in floats):
            dtypes.remove(torch.float64)  # which Apple's GPUs do not have
        elif floats and floats[0].dtype is torch.float64:
            dtypes.remove(torch.float32)
        self._keeps_float64 = True
        self._references: dict[torch.dtype, list[tuple[Arguments, list[Tensor]]]] = {}
        for dtype in dtypes:
            self._cast(self._masked, dtype)
            cast = _map_tensors(lambda x, dtype=dtype: x.to(dtype) if x.is_floating_point() else x, inputs)
            try:
                try:
                    with self._casting(dtype):
                        self._references[dtype] = list(_references(self._masked, cast))
                except Exception:
                    if dtype is not torch.float64 or not self._keeps_float64:
                        raise
                    self._keeps_float64 = False
                    self._references[dtype] = list(_references(self._masked, cast))
            except Exception as error:
                if self._references:
                    break
                raise CompactionError(
                    f"{type(model).__name__} does not run on the example inputs in eval mode: {type(error).__name__}:"
                    f" {error}"
                ) from error

    def errors(self, cut: Change, tolerance: float) -> dict[str, float]:
        """Cut a part of the plan from a copy and return the largest relative error in each precision.

        error = max|masked - compact| / max|masked| of each output (over at least a thousandth of the largest output of
        all), in eval mode, on the inputs and on a second random batch of the same shapes. Half precision is compared at
        float32 and float64, float64 at float64 alone. What its code casts to float32 stays at float64 there; a model
        that does not run so is compared with its casts, and one that does not run at float64 at float32 alone.

        Args:
            cut: the part of the plan that is removed, where the rest of it is only masked.
            tolerance: largest error allowed at float64; float32 is allowed a million times as much.

        Raises:
            Mismatch: the compact model computes something else; it names the first differing module.
        """
        errors: dict[str, float] = {}
        for dtype, references in self._references.items():
            compact = plain_copy(self._start)
            for one in (self._masked, compact):
                self._cast(one, dtype)
            cut.rebuild(compact)  # at this precision, to which what is multiplied is rounded
            allowed = tolerance if dtype is torch.float64 else tolerance * _SLACK_32
            check = _Check(self._masked, compact, allowed, str(dtype).removeprefix("torch."))
            with self._casting(dtype):
                errors[check.precision] = max(check.error(batch, outputs) for batch, outputs in references)
        return errors

    def _casting(self, dtype: torch.dtype) -> AbstractContextManager[object]:
        """Return what a model runs under at a precision."""
        return _AtFloat64() if dtype is torch.float64 and self._keeps_float64 else nullcontext()

    def _cast(self, model: nn.Module, dtype: torch.dtype) -> None:
        model.double() if dtype is torch.float64 else model.float()
        empty(model, self._caches)


def _references(masked: nn.Module, inputs: Arguments) -> Iterator[tuple[Arguments, list[Tensor]]]:
    """Yield the inputs and a second batch, each with its outputs.

    A model may refuse values that differ from its example, such as lengths that are no longer sorted: floats alone are
    drawn anew then, and when it refuses these too the example has to do.
    """
    yield inputs, _run(masked, inputs)
    for permuted in (True, False):
        batch = _second_batch(inputs, permuted)
        try:
            outputs = _run(masked, batch)
        except Exception:
            continue
        yield batch, outputs
        return


def _second_batch(inputs: Arguments, permuted: bool) -> Arguments:
    """Random floats of the mean and spread of the inputs; other tensors hold the same values, permuted or not."""
    generator = torch.Generator().manual_seed(0)

    def fresh(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point() and tensor.numel() and bool(tensor.isfinite().all()):
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor)
            return tensor.mean() + noise * (float(tensor.std(correction=0)) or 1.0)
        order = torch.randperm(tensor.numel(), generator=generator).to(tensor.device)
        return tensor.flatten()[order].reshape(tensor.shape) if permuted else tensor

    return _map_tensors(fresh, inputs)


def _map_tensors(change: Callable[[Tensor], Tensor], inputs: Arguments) -> Arguments:
    return walked(inputs, change)


def _run(model: nn.Module, inputs: Arguments) -> list[Tensor]:
    """Run the model on a copy of the inputs; return its tensors.

    The global random generators and its own buffers are afterwards as they were. A model with a memory runs twice in a
    row, from its first state, and gives the tensors of both calls.
    """
    args, kwargs = _map_tensors(lambda tensor: tensor.detach().clone(), inputs)
    devices = sorted({t.device.index for t in model.parameters() if t.device.type == "cuda"})
    with torch.no_grad(), without_fast_path(), torch.random.fork_rng(devices):
        torch.manual_seed(0)
        with kept_state(model) as changed:
            outputs = list(tensors_in(model(*args, **kwargs)))
            if changed():
                outputs = [output.clone() for output in outputs]  # one may be a buffer itself
                # what a call leaves in a buffer shows in the calls after it
                args, kwargs = _map_tensors(lambda tensor: tensor.detach().clone(), inputs)
                outputs += [output.clone() for output in tensors_in(model(*args, **kwargs))]
    if not outputs:
        raise TypeError(f"{type(model).__name__} returns no tensor that could be compared")
    return outputs


def relative_error(masked: list[Tensor], compact: list[Tensor]) -> float:
    """Return the largest of max|masked - compact| / max|masked| over the outputs; infinite for other shapes.

    Outputs that are not floats must be equal, NaN and infinities must stand in the same places. An output much smaller
    than the largest of all is measured against a thousandth of that.
    """
    if [tensor.shape for tensor in masked] != [tensor.shape for tensor in compact]:
        return float("inf")
    scales = [_largest(tensor) for tensor in masked if tensor.is_floating_point() or tensor.is_complex()]
    floor = max(scales, default=0.0) / 1000
    return max((_error(m, c, floor) for m, c in zip(masked, compact, strict=True)), default=0.0)


def _error(masked: Tensor, compact: Tensor, floor: float) -> float:
    same = (masked == compact) | ((masked != masked) & (compact != compact))
    if bool(same.all()):
        return 0.0
    if not (masked.is_floating_point() or masked.is_complex()):
        return float("inf")
    difference, scale = (masked - compact).abs()[~same].double(), max(_largest(masked), floor)
    return float(difference.max()) / scale if scale > 0 and bool(difference.isfinite().all()) else float("inf")


def _largest(tensor: Tensor) -> float:
    finite = tensor.detach()[tensor.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0


@dataclasses.dataclass(frozen=True)
class _Check:
    """Two models, and how far apart they may be."""

    masked: nn.Module
    compact: nn.Module
    allowed: float
    precision: str

    def error(self, batch: Arguments, reference: list[Tensor]) -> float:
        """Return the relative error on one batch. Raises CompactionError when it is more than allowed."""
        try:
            error = relative_error(reference, _run(self.compact, batch))
        except Exception as cause:
            *finished, (where, _) = _recorded(self.compact, batch)
            kept = tensors_beside(self.compact.get_submodule(where))
            held = f", or what it keeps beside its parameters ({', '.join(kept)}) was computed before" if kept else ""
            raise Mismatch(
                f"the compact model does not run: {self._name(where)} raises {type(cause).__name__}: {cause}. Its code"
                f" seems to hold a size that the removal changes{held}; leave the channel groups that reach it out of"
                " the plan",
                where,
                [path for path, _ in finished],
                has_raised=True,
            ) from cause
        if error <= self.allowed:
            return error
        finished, where = self._first_difference(batch)
        raise Mismatch(
            f"the compact model computes something else than the masked one: relative error {error:.2g} at"
            f" {self.precision}, allowed {self.allowed:.2g}. It first differs in"
            f" {'the shapes of its outputs' if where is None else self._name(where)}. Leave the channel groups that"
            " reach it out of the plan",
            where or "",
            finished,
            has_raised=False,
        )

    def _first_difference(self, batch: Arguments) -> tuple[list[str], str | None]:
        """Return the first module whose output has the same shape in both models, but not the same values.

        With the modules that finished before it; None where there is none.
        """
        finished: list[str] = []
        pairs = zip(_recorded(self.masked, batch), _recorded(self.compact, batch), strict=False)
        for (path, masked), (_, compact) in pairs:
            comparable = [(m, c) for m, c in zip(masked or (), compact or (), strict=False) if m.shape == c.shape]
            if comparable and relative_error(*map(list, zip(*comparable, strict=True))) > self.allowed:
                return finished, path
            finished.append(path)
        return finished, None

    def _name(self, path: str) -> str:
        kind = type(self.masked.get_submodule(path)).__name__
        return f"{path} ({kind})" if path else f"the forward of {kind} itself"


def _recorded(model: nn.Module, batch: Arguments) -> list[tuple[str, list[Tensor] | None]]:
    """Return (path, outputs) of each module call in the order of completion; last the one that raises, with None."""
    finished: list[tuple[str, list[Tensor] | None]] = []
    running: list[str] = []

    def enter(path: str) -> Callable[..., None]:
        return lambda *_: running.append(path)

    def leave(module: nn.Module, args: object, output: object) -> None:
        finished.append((running.pop(), list(tensors_in(output))))

    handles = [module.register_forward_pre_hook(enter(path)) for path, module in model.named_modules()]
    handles += [module.register_forward_hook(leave) for module in model.modules()]
    try:
        _run(model, batch)
    except Exception:
        return [*finished, (running[-1] if running else "", None)]
    finally:
        for handle in handles:
            handle.remove()
    return finished
