"""What a program is calibrated on: batches of a loader, cut to the size that it was traced with, or sequences."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from lightning_prune.deploy.program.eager import random_like
from lightning_prune.deploy.program.feeds import Feeding
from lightning_prune.deploy.program.loaders import split_batch
from lightning_prune.deploy.program.sequences import Sequences
from lightning_prune.deploy.program.signature import specs

Sample = tuple[Tensor, ...]
"""The inputs of one run of a program."""


@dataclass(frozen=True)
class Samples:
    """Runs in rows: each row begins from the first state of a program, each run goes on from the one before.

    Args:
        rows: of runs; a program without a memory computes the same in whatever row a run stands.
        first: buffer that a run changes -> its first value.
        feeding: inputs that are outputs of the run before it in its row.
    """

    rows: Sequence[Sequence[Sample]]
    first: Mapping[str, Tensor] = field(default_factory=dict)
    feeding: Feeding = field(default_factory=Feeding)

    @property
    def example(self) -> Sample:
        """The first run."""
        return self.rows[0][0]

    def few(self, count: int) -> "Samples":
        """Return some runs of the first row."""
        return replace(self, rows=(self.rows[0][:count],))

    def run(self, graph: GraphModule) -> Iterator[Sample]:
        """Yield the inputs of each run, and let the graph be in the first state before each row."""
        for row in self.rows:
            for name, value in self.first.items():
                graph.get_buffer(name).copy_(value)
            yield from row


def samples_of(loader: Iterable[Any], inputs: Sequence[Tensor], count: int) -> Samples:
    """Return the first samples of a loader in one row, or the first calls of sequences.

    Args:
        loader: of batches, as to :func:`calibration_samples`; or sequences as the program takes them.
        inputs: of the program.
        count: how many at most.

    Raises:
        ValueError: there is none, or one does not fit.
    """
    if not isinstance(loader, Sequences):
        check_batched(inputs)
        return Samples((calibration_samples(loader, inputs, count),))
    rows, left = list[list[Sample]](), count
    for number, row in enumerate(loader.calls):
        for at, call in enumerate(row[:left]):
            if not all(bool(torch.isfinite(x).all()) for x in call if x.is_floating_point()):
                raise ValueError(f"calibration: call {at} of sequence {number} holds NaN or infinities; leave it out")
        rows += [row[:left]] if left else []
        left -= len(row[:left])
    return Samples(rows, feeding=loader.feeding)


def calibration_samples(batches: Iterable[Any], inputs: Sequence[Tensor], count: int) -> tuple[Sample, ...]:
    """Return the first samples of a loader in runs of the program's batch size; the last run is filled up.

    Args:
        batches: tensors, ``(inputs, targets)`` or ``(input_0, …)``, of any batch size.
        inputs: of the program; their first dimension is the batch.
        count: how many samples at most.

    Raises:
        ValueError: there is none, or one is of another shape or dtype than the program's, or not finite.
    """
    takes = specs([f"input_{i}" for i in range(len(inputs))], inputs)
    size = len(inputs[0])
    rows = itertools.islice(_rows(batches, takes), max(count, 1))
    runs: list[Sample] = []
    while chunk := list(itertools.islice(rows, size)):
        chunk += [chunk[i % len(chunk)] for i in range(size - len(chunk))]
        runs.append(tuple(torch.stack(column).contiguous() for column in zip(*chunk, strict=True)))
    if not runs:
        raise ValueError("calibration: the loader gives no batch; pass one with at least one sample")
    return tuple(runs)


def _rows(batches: Iterable[Any], takes: Sequence[Any]) -> Iterator[Sample]:
    for index, batch in enumerate(batches):
        tensors, _ = split_batch(batch, takes, needs_targets=False, where="calibration")
        if not all(bool(torch.isfinite(x).all()) for x in tensors if x.is_floating_point()):
            raise ValueError(f"calibration: batch {index} holds NaN or infinities; leave such samples out")
        yield from zip(*(x.clone() for x in tensors), strict=True)


def check_batched(inputs: Sequence[Tensor]) -> None:
    """Check that all inputs share a first dimension, along which batches are cut.

    Raises:
        ValueError: they do not.
    """
    sizes = {len(x) if x.ndim else 0 for x in inputs}
    if len(sizes) != 1 or 0 in sizes:
        shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
        raise ValueError(
            f"calibration: the first dimension of every input must be the batch, got {shapes}; wrap the model in a"
            " module that takes one"
        )


def drawn_samples(inputs: Sequence[Tensor]) -> tuple[Sample, ...]:
    """Return the inputs, and random ones of the same shapes."""
    return tuple(inputs), random_like(inputs)
