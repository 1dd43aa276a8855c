"""Batches of a loader, as inputs and targets, cut to the sizes that a program takes."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_prune.deploy.program.preprocessing import Normalize
from lightning_prune.deploy.program.sequences import Sequences
from lightning_prune.deploy.program.signature import MethodSpec, TensorSpec, describe, describe_shape, dtype_name
from lightning_prune.deploy.program.structure import Records, named_leaves

Function = Callable[..., Sequence[Tensor]]
"""Tensors in, a flat sequence of tensors out: the eager model or the program."""

_MOST = 8
"""Samples that are taken of data that nobody asked to be judged on: each is run on both sides."""


@dataclass(frozen=True)
class OwnSamples:
    """Inputs of a model's own data, cut to the sizes that a program takes.

    Args:
        name: what gives them, in words.
        inputs: of each run, the last one filled up; empty where there are none.
        count: of samples in them.
        reason: why there are none, where there should be some.
    """

    name: str = ""
    inputs: tuple[tuple[Tensor, ...], ...] = ()
    count: int = 0
    reason: str = ""


NO_SAMPLES = OwnSamples()


@dataclass(frozen=True)
class OwnData:
    """Batches of a model's own data, which nobody asked to be judged on: what does not fit is told and left out.

    Args:
        batches: only the first is taken; there may be none.
        name: what gives them, in words.
    """

    batches: Iterable[Any]
    name: str

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)

    def samples(self, inputs: Sequence[TensorSpec], preprocess: Normalize | None) -> OwnSamples:
        """Return some samples.

        Args:
            inputs: what the program takes.
            preprocess: that is folded in, if any.
        """
        try:
            batch = next(iter(self), None)
            if batch is None:
                return OwnSamples(self.name)
            check_batched(inputs, ())
            if len(inputs) == 1 and isinstance(batch, Mapping) and inputs[0].name not in batch:
                leaves = [leaf for _, leaf in named_leaves(batch) if isinstance(leaf, Tensor)]
                fitting = [x for x in leaves if x.dtype == inputs[0].dtype and x.shape[1:] == inputs[0].shape[1:]]
                batch = fitting[0] if len(fitting) == 1 else batch
            records = Records([each.name for each in inputs], [batch], self.name)
            first, _ = first_of(records if preprocess is None else preprocess.images(records, self.name))
            tensors = split_batch(first, inputs, needs_targets=False, where=self.name)[0]
        except Exception as error:  # a data set and its hooks are the user's, who did not ask for this
            return OwnSamples(self.name, reason=f"{type(error).__name__}: {error}")
        smallest, largest = inputs[0].range_of(0)
        few = [x[:_MOST] for x in tensors]
        return OwnSamples(self.name, tuple(_chunks(few, smallest, largest)), len(few[0]))


def own_or_asked(
    data: Iterable[Any] | None, spec: MethodSpec, preprocess: Normalize | None, needs_targets: bool
) -> tuple[OwnSamples, Iterable[Any] | None]:
    """Return samples of a model's own data, or all batches of a loader that was asked for, as the program takes them.

    Raises:
        ValueError: as :func:`checked_batches`, of which the arguments are.
    """
    if isinstance(data, OwnData):
        return data.samples(spec.inputs, preprocess), None
    return NO_SAMPLES, None if data is None else checked_batches(data, spec, preprocess, needs_targets)


def checked_batches(
    loader: Iterable[Any], spec: MethodSpec, preprocess: Normalize | None, needs_targets: bool
) -> Iterable[Any]:
    """Return the batches of a loader as the program takes them, after the first one was checked; of sequences all.

    Args:
        loader: of batches.
        spec: what the program takes and gives, with its ranges.
        preprocess: that is folded in, if any.
        needs_targets: whether there is a metric.

    Raises:
        ValueError: there is none, or it does not fit.
    """
    if isinstance(loader, Sequences):
        return loader.taken(spec, preprocess, "verify_on")
    check_batched(spec.inputs, spec.outputs)
    # the batches may be those of the calibration too, or of the shell's --data: what they hold tells which are meant
    loader = Records([each.name for each in spec.inputs], loader, "the loader")
    loader = loader if preprocess is None else preprocess.images(loader, "verify_on")
    first, batches = first_of(loader)
    split_batch(first, spec.inputs, needs_targets)
    return _Begun(loader, batches)


class _Begun:
    """A loader of which an iteration was begun: that is gone on with first, whoever iterates again begins anew."""

    def __init__(self, loader: Iterable[Any], batches: Iterator[Any]) -> None:
        self._loader = loader
        self._batches: Iterator[Any] | None = batches

    def __iter__(self) -> Iterator[Any]:
        batches, self._batches = self._batches, None
        return iter(self._loader) if batches is None else batches


def first_of(loader: Iterable[Any]) -> tuple[Any, Iterator[Any]]:
    """Return a loader's first batch, and all of its batches.

    Raises:
        ValueError: there is none.
    """
    batches = iter(loader)
    try:
        first = next(batches)
    except StopIteration:
        raise ValueError("verify_on: the loader gives no batch; pass one with at least one sample") from None
    return first, itertools.chain([first], batches)


def split_batch(
    batch: object, inputs: Sequence[TensorSpec], needs_targets: bool, where: str = "verify_on"
) -> tuple[tuple[Tensor, ...], object]:
    """Return the model's inputs and the targets of one batch of a loader.

    Args:
        batch: a tensor; ``(inputs, targets)`` where inputs is a tensor or a tuple of them; or for a model of several
            inputs also ``(input_0, …, targets)``.
        inputs: what the program takes; the first dimension is the batch and may be another one.
        needs_targets: whether there is a metric.
        where: which loader, in errors.

    Raises:
        ValueError: the batch is of another form, or an input has another shape or dtype than the program takes.
    """
    parts = tuple(batch) if isinstance(batch, tuple | list) else (batch,)
    nested = tuple(parts[0]) if parts and isinstance(parts[0], tuple | list) else None
    count = len(inputs) if nested is None else 1
    given = parts[:count] if nested is None else nested
    tensors = tuple(x.detach().cpu() for x in given if isinstance(x, Tensor))
    fits = len(tensors) == len(given) == len(inputs) and all(
        x.ndim == len(s.shape) > 0 and s.takes(x[:1].expand(s.shape[0], *x.shape[1:]) if len(x) else x)
        for s, x in zip(inputs, tensors, strict=True)
    )
    sizes = {len(x) for x in tensors} if fits else set()
    if len(sizes) != 1 or 0 in sizes:
        wanted = ", ".join(f"{describe_shape(('N', *s.size_texts()[1:]))} {dtype_name(s.dtype)}" for s in inputs)
        raise ValueError(f"{where}: a batch holds the inputs {describe(given)}, the example inputs are {wanted}")
    if needs_targets and len(parts) <= count:
        raise ValueError(f"{where}: with a metric each batch must be (inputs, targets); got the inputs alone")
    return tensors, parts[count] if needs_targets else None


def check_batched(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
    """Check that the first dimension of every input and output is one and the same batch.

    Raises:
        ValueError: it is not, so that a loader's batches cannot be cut to fit.
    """
    sizes = {spec.shape[0] if spec.shape else 0 for spec in (*inputs, *outputs)}
    if len(sizes) != 1 or 0 in sizes or len({spec.range_of(0) for spec in inputs}) != 1:
        shapes = ", ".join(map(str, (*inputs, *outputs)))
        raise ValueError(
            f"verify_on cuts batches to the exported size, so the first dimension of every input and output must be the"
            f" batch; got {shapes}. Leave verify_on out, or wrap the model in a module that keeps the batch"
        )


def run_in_chunks(run: Function, inputs: Sequence[Tensor], smallest: int, largest: int) -> tuple[Tensor, ...]:
    """Run a function on any number of samples in chunks that it takes.

    Args:
        run: takes from ``smallest`` to ``largest`` samples at a time.
        inputs: of any equal length above 0.
        smallest: a last chunk below it is padded, and the rest of its outputs dropped.
        largest: size of all chunks but the last.
    """
    results: list[Sequence[Tensor]] = []
    total = len(inputs[0])
    for start, chunk in zip(itertools.count(0, largest), _chunks(inputs, smallest, largest), strict=False):
        results.append([y[: total - start] for y in run(*chunk)])
    return tuple(torch.cat(parts) for parts in zip(*results, strict=True))


def _chunks(inputs: Sequence[Tensor], smallest: int, largest: int) -> Iterator[tuple[Tensor, ...]]:
    """Yield any number of samples in chunks of ``largest``; the last is filled up to ``smallest`` with its last one."""
    for start in range(0, len(inputs[0]), largest):
        chunk = [x[start : start + largest] for x in inputs]
        missing = max(0, smallest - len(chunk[0]))
        padded = [torch.cat([x, x[-1:].expand(missing, *x.shape[1:])]) if missing else x for x in chunk]
        yield tuple(x.contiguous() for x in padded)
