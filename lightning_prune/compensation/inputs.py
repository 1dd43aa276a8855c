"""The inputs that repair and criteria look at in training: those of the last forward passes before an event."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from lightning_prune.compensation.least_squares import MIN_SAMPLES
from lightning_prune.compensation.repair import joined
from lightning_prune.distributed import ranks
from lightning_prune.errors import PruningError
from lightning_prune.model.example import (
    Example,
    Standing,
    as_plain,
    first_samples,
    sample_count,
    tensors_in,
    walked,
    whole_networks,
)
from lightning_prune.model.masks import device_of

MIN_ON_A_RANK = 4
"""A fourth is held out, so of fewer samples none."""


@dataclass(frozen=True)
class Call:
    """Arguments of a model's forward, or of that of a child which holds all of its trained parameters.

    Args:
        path: of the child; empty for the model itself.
        example: the arguments.
        are_enough: whether they are so many, over all ranks, that repair does not fit their noise.
    """

    path: str
    example: Example
    are_enough: bool = True

    @property
    def samples(self) -> int:
        """How many samples they are."""
        return sample_count((self.example.args, dict(self.example.kwargs)))

    def __call__(self, model: nn.Module) -> Any:  # noqa: ANN401
        """Return what the model gives for them.

        Raises:
            PruningError: they cannot run in eval mode, in which the model is; what forward raised is its cause.
        """
        try:
            return self.example(model.get_submodule(self.path))
        except PruningError:
            raise
        except Exception as error:
            held = tensors_in((self.example.args, dict(self.example.kwargs)))
            dtypes = {tensor.dtype for tensor in held if tensor.is_floating_point()}
            own = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
            advice = "Let forward take all of them at once in eval mode, or leave out what looks at samples"
            if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error):
                advice = "They run as one batch: let repair, criterion and prune look at fewer, samples=…"
            elif own and dtypes - own:
                names = [", ".join(sorted(map(str, kinds))) for kinds in (dtypes, own)]
                advice = f"The inputs are {names[0]} and the weights {names[1]}: cast one of them"
            raise PruningError(
                f"forward of {type(model).__name__} cannot run in eval mode on the {self.samples} samples that repair"
                f" and criteria look at ({type(error).__name__}: {error}); nothing was pruned. {advice}"
            ) from error


class LastInputs:
    """Keeps the arguments of the last forward passes that record gradients, while an event is near.

    Args:
        samples: to keep, over all ranks; 0: none, ever.
        is_near: number of optimizer steps -> whether an event comes within so many.
    """

    def __init__(self, samples: int, is_near: Callable[[int], bool]) -> None:
        self._samples, self._is_near = samples, is_near
        self._calls: list[Call] = []
        self._standing: list[Standing] = []
        self._has_warned = False

    @property
    def _share(self) -> int:
        """Samples that this rank keeps."""
        return max(-(-self._samples // ranks.world_size()), MIN_ON_A_RANK)

    def listen(self, model: nn.Module) -> None:
        """Look at the forward passes of a model from now on, until :meth:`stop`."""
        if self._samples:
            for path, network in {"": model, **whole_networks(model)}.items():
                self._standing.append(Standing(network, partial(self._see, path)))

    def stop(self) -> None:
        """Look away; what is kept stays."""
        for standing in self._standing:
            standing.remove()
        self._standing = []

    def after_event(self) -> None:
        """Forget what is kept, unless the next event is near as well."""
        if self._calls and not self._would_last(self._calls[-1]):
            self._calls = []

    def _would_last(self, call: Call) -> bool:
        """Whether the next event comes before as many later samples have taken the place of a call's."""
        return self._is_near(-(-self._share // call.samples))

    def _see(self, path: str, example: Example) -> None:
        call = Call(path, example)
        # what nobody will look at is not kept, and is in no checkpoint either
        if not torch.is_grad_enabled() or not self._would_last(call):
            return
        if self._calls and self._calls[-1].path != path:
            if path:  # a model's forward calls the child as well, and has been seen already
                return
            self._calls = []
        self._calls.append(Call(path, first_samples(example, self._share)))
        while sum(call.samples for call in self._calls[1:]) >= self._share:
            del self._calls[0]

    def last_call(self, model: nn.Module, step: int, is_repairing: bool) -> Call | None:
        """Return the last samples as one call, the newest first; None where a rank has none.

        Args:
            model: to whose device they go.
            step: of the event, for the warning.
            is_repairing: whether to warn, once, where they are not enough.
        """
        with ranks.together(f"the repair of step {step}"):
            call, count, kept = None, 0, min(sum(call.samples for call in self._calls), self._share)
            if self._calls:
                device = device_of(model)
                last = [walked(call.example, lambda x: x.to(device)) for call in reversed(self._calls)]
                call = Call(self._calls[-1].path, joined(last, self._share))
                count = call.samples
            counts = torch.tensor([count, int(count < MIN_ON_A_RANK), int(not count)])
            total, lacking, empty = ranks.add_up(counts).tolist()
        are_enough = total >= MIN_SAMPLES and not lacking
        if is_repairing and not are_enough and not self._has_warned:
            self._has_warned = True
            name = type(model).__name__
            why = (
                f"the {total} samples of the last forward passes are too few, {MIN_SAMPLES} are the least"
                if total
                else f"forward of {name} was not called in the steps before it"
            )
            warnings.warn(
                f"step {step}: the event is not repaired, since {why}: let begin_step be later, take larger batches,"
                " call self(…) in training_step, or leave Recipe(repair=…) out",
                stacklevel=2,
            )
        if count < kept and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"step {step}: {count} of the {kept} samples kept for repair and criteria are looked at, those of one"
                " shape; the other batches have other shapes",
                stacklevel=2,
            )
        return None if call is None or empty else replace(call, are_enough=are_enough)

    def state_dict(self) -> list[list[dict[str, Any]]]:
        """Return what each rank keeps, as plain values; what holds objects of other classes is left out."""
        own = [(call.path, as_plain(walked(call.example, lambda x: x.cpu()))) for call in self._calls]
        kept = [{"path": path, **plain} for path, plain in own if plain is not None]
        return ranks.gathered(kept) if self._samples else []

    def load_state_dict(self, state: Sequence[Sequence[Mapping[str, Any]]]) -> None:
        """Take up what :meth:`state_dict` returned; another number of ranks shares it out anew."""
        size, rank = ranks.world_size(), ranks.own_rank()
        own = state[rank] if len(state) == size else [entry for kept in state for entry in kept][rank::size]
        self._calls = [Call(entry["path"], Example(entry["args"], entry["kwargs"])) for entry in own]
