"""The teacher: a frozen copy of a model in eval mode, told by its digest, kept in a file of its own."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from lightning_prune.checkpoints import state as checkpoints
from lightning_prune.errors import CheckpointError, NonFiniteError, PruningError
from lightning_prune.model.masks import dense_names, dense_parameters, fold
from lightning_prune.model.plain_copy import plain_copy


class Teacher:
    """A frozen copy of a module, in eval mode, with its masks folded.

    Args:
        model: what is copied; it stays as it is.
        like: the student, to whose device and type of floats the copy goes; None: it stays where it is.

    Raises:
        PruningError: it has lazy layers that have not seen an input yet; it is another model than the student, and
            lies on the meta device.
        NonFiniteError: it is another model than the student, and a parameter is NaN or infinite.
    """

    def __init__(self, model: nn.Module, like: nn.Module | None = None) -> None:
        lazy = next((name for name, tensor in dense_names(model).items() if is_lazy(tensor)), None)
        if lazy is not None:
            raise PruningError(
                f"{lazy} has no values yet, so there is nothing that {type(model).__name__} could teach: run it once on"
                " an example before the fit"
            )
        for name, tensor in dense_parameters(model).items() if like is not None else ():
            if tensor.is_meta:
                raise PruningError(
                    f"{name} of the teacher {type(model).__name__} lies on the meta device: load its weights"
                )
            if not bool(tensor.isfinite().all()):
                raise NonFiniteError(
                    f"{name} of the teacher {type(model).__name__} is NaN or infinite: load other weights"
                )
        self.module = fold(plain_copy(model)).eval().requires_grad_(False)
        if like is not None:
            ours, theirs = _float_types(self.module), _float_types(like)
            self.module.to(next((tensor.device for tensor in like.parameters()), None))
            if len(ours) == len(theirs) == 1 and ours != theirs:
                self.module.to(dtype=next(iter(theirs)))
        digest = hashlib.sha256()
        for name, tensor in dense_names(self.module).items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        self.digest = digest.hexdigest()

    def state(self) -> dict[str, Any]:
        """Return what a file must hold so that :meth:`restored` can make the teacher again: tensors, plain values."""
        return {"state_dict": dict(dense_names(self.module)), checkpoints.KEY: checkpoints.describe(self.module)}

    @classmethod
    def restored(cls, model: nn.Module, saved: Mapping[str, Any], digest: str) -> "Teacher":
        """Make the teacher again from what :meth:`state` returned.

        Args:
            model: of the same class, in any shape, masked or not; it stays as it is.
            saved: the state.
            digest: of the teacher that was saved.

        Raises:
            CheckpointError: the state is of another teacher, or damaged.
        """
        blank = fold(plain_copy(model))
        checkpoints.adapt(blank, saved["state_dict"], saved.get(checkpoints.KEY))
        with torch.no_grad():
            for name, tensor in dense_names(blank).items():
                tensor.copy_(saved["state_dict"][name])
        teacher = cls(blank)
        if teacher.digest != digest:
            raise CheckpointError(f"the teacher's file is of another teacher than {digest[:12]}, or damaged")
        return teacher

    @contextmanager
    def teaching(self) -> Iterator[nn.Module]:
        """Let it compute without gradients and without a trace in the random generators."""
        devices = {tensor.device.index or 0 for tensor in dense_names(self.module).values() if tensor.is_cuda}
        with torch.no_grad(), torch.random.fork_rng(devices=sorted(devices)):
            yield self.module


def _float_types(model: nn.Module) -> set[torch.dtype]:
    dtypes = {tensor.dtype for tensor in dense_names(model).values()}
    return {dtype for dtype in dtypes if dtype.is_floating_point or dtype.is_complex}
