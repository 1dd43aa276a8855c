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
from lightning_prune.distributed import ranks, shards
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
from lightning_prune.model.plain_copy import is_compiled
from lightning_prune.model.summary import as_evaluated

MIN_ON_A_RANK = 4
"""A fourth is held out, so of fewer samples none."""


@dataclass(frozen=True)
class Call:
    """Arguments of a model's forward, or of that of a child which holds all of its trained parameters.

    Args:
        path: of the child; empty for the model itself.
        example: the arguments.
    """

    path: str
    example: Example

    @property
    def samples(self) -> int:
        """How many samples they are."""
        return sample_count((self.example.args, dict(self.example.kwargs)))

    @property
    def bytes(self) -> int:
        """What they take in memory."""
        return sum(x.numel() * x.element_size() for x in tensors_in((self.example.args, dict(self.example.kwargs))))

    def first(self, samples: int) -> "Call":
        """Return as many of them, or all."""
        return replace(self, example=first_samples(self.example, max(samples, 1)))

    def outputs_of_a_sample(self, model: nn.Module) -> int:
        """Return the bytes of the largest output that a module of the model gives for one of them, in eval mode."""
        few, largest = self.first(MIN_ON_A_RANK), 1

        def see(_: nn.Module, __: object, outputs: object) -> None:
            nonlocal largest
            largest = max([largest, *(x.numel() * x.element_size() for x in tensors_in(outputs))])

        handles = [module.register_forward_hook(see) for module in model.modules()]
        try:
            with torch.no_grad(), as_evaluated(model):
                few(model)
        finally:
            for handle in handles:
                handle.remove()
        return -(-largest // few.samples)

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
        megabytes: what they take, at most, over all ranks; an eighth of what a layer may give for those that are looked
            at, on each rank. None: whatever they take.
        is_asked: whether a recipe names what looks at them. Otherwise what stands in the way is a reason to look at
            none, and neither raised nor warned of.
    """

    def __init__(
        self, samples: int, is_near: Callable[[int], bool], megabytes: int | None = None, is_asked: bool = True
    ) -> None:
        self._samples, self._is_near, self._megabytes, self._is_asked = samples, is_near, megabytes, is_asked
        self._calls: list[Call] = []
        self._standing: list[Standing] = []
        self._reason = ""
        self._has_warned = False

    def _share(self, like: Call) -> int:
        """Return how many samples as large as these this rank keeps."""
        share, size = max(-(-self._samples // ranks.world_size()), MIN_ON_A_RANK), ranks.world_size()
        if self._megabytes is None:
            return share
        return min(share, max(1, (self._megabytes << 20) * like.samples // (size * max(like.bytes, 1))))

    def listen(self, model: nn.Module) -> None:
        """Look at the forward passes of a model from now on, until :meth:`stop`.

        Unless somebody asks for it, what is compiled stays so: whatever stands before a forward cuts its graph.
        """
        networks = {"": model, **whole_networks(model)} if self._samples else {}
        self._reason = ""
        if not self._is_asked:
            compiled = {path for path, network in networks.items() if is_compiled(network)}
            if any(map(shards.is_sharded, model.parameters())):
                networks, self._reason = {}, "the weights are sharded"
            elif "" in compiled:
                networks, self._reason = {}, f"{type(model).__name__} is compiled"
            networks = {path: network for path, network in networks.items() if path not in compiled}
        for path, network in networks.items():
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
        return self._is_near(-(-self._share(call) // call.samples))

    def _see(self, path: str, example: Example) -> None:
        call = Call(path, example)
        # what nobody will look at is not kept, and is in no checkpoint either
        if not torch.is_grad_enabled() or not self._would_last(call):
            return
        if self._calls and self._calls[-1].path != path:
            if path:  # a model's forward calls the child as well, and has been seen already
                return
            self._calls = []
        share = self._share(call)
        self._calls.append(call.first(share))
        while sum(call.samples for call in self._calls[1:]) >= share:
            del self._calls[0]

    def last_call(self, model: nn.Module, step: int, is_repairing: bool) -> tuple[Call | None, str]:
        """Return the last samples as one call, the newest first, and why they cannot serve repair.

        Args:
            model: to whose device they go.
            step: of the event, for the warning.
            is_repairing: whether to warn, once, where they cannot.

        Returns:
            The call, None where a rank has none; the reason, "" where they can.
        """
        with ranks.together(f"the repair of step {step}"):
            call, left_out, reason, of = None, "", self._reason, "of the last forward passes"
            if self._calls:
                share, device = self._share(self._calls[-1]), device_of(model)
                kept = min(sum(call.samples for call in self._calls), share)
                last = [walked(call.example, lambda x: x.to(device)) for call in reversed(self._calls)]
                call = Call(self._calls[-1].path, joined(last, share))
                if call.samples < kept:
                    left_out = f"{call.samples} of the {kept} samples"
                if self._megabytes is not None:
                    try:
                        most = (8 * self._megabytes << 20) // call.outputs_of_a_sample(model)
                    except PruningError as error:
                        if self._is_asked:
                            raise
                        most, reason = 1, str(error).partition("; nothing was pruned")[0].partition("\n")[0]
                    of = of if min(most, share) >= MIN_SAMPLES else f"that megabytes={self._megabytes} allows"
                    call = call.first(most)
            ranks.agree()
            counts, reasons = zip(*ranks.gathered((0 if call is None else call.samples, reason)), strict=True)
        name, total, reason = type(model).__name__, sum(counts), next(filter(None, reasons), "")
        if not reason and (total < MIN_SAMPLES or min(counts) < MIN_ON_A_RANK):
            few = f"the {total} samples {of} are too few, {MIN_SAMPLES} are the least"
            reason = few if total else f"forward of {name} was not called in the steps before it"
        if is_repairing and reason and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"step {step}: the event is not repaired, since {reason}: let begin_step be later, take larger batches,"
                " call self(…) in training_step, or leave Recipe(repair=…) out",
                stacklevel=2,
            )
        if left_out and self._is_asked and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"step {step}: {left_out} kept for repair and criteria are looked at, those of one shape; the other"
                " batches have other shapes",
                stacklevel=2,
            )
        return None if call is None or not min(counts) else call, reason

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
