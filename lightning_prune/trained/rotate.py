"""The width of a pre-norm transformer turned so that its last channels matter least."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_prune.compaction.resize import Undo, all_or_nothing
from lightning_prune.compaction.rotation import Moments, Turn
from lightning_prune.data.batches import arguments_of, first_batches, loader_of
from lightning_prune.data.passes import Passes, own_random_state
from lightning_prune.errors import GraphError, PruningError
from lightning_prune.graph.stream import streams_of
from lightning_prune.model import masks
from lightning_prune.model.example import Example, Inputs, example_of, learnt, remember
from lightning_prune.model.summary import as_evaluated
from lightning_prune.values import check_number, check_whole


@dataclass(frozen=True)
class RotatedStream:
    """One residual stream that was rotated.

    Args:
        norms: paths of its normalisations, each an ``nn.RMSNorm`` now.
        writers: dense names of the weights, embeddings and positions that write into it.
        readers: dense names of the weights that read it.
        entrance: path of the module in front of which a matrix was put, its parameter ``stream_turn.weight``; ""
            where there is none.
        shares: share of the second moments along each channel, descending; shape (width,).
        error: largest relative error between the dense and the rotated model at float64.
    """

    norms: tuple[str, ...]
    writers: tuple[str, ...]
    readers: tuple[str, ...]
    entrance: str
    shares: Tensor
    error: float

    def __str__(self) -> str:
        width = len(self.shares)
        kept = ", ".join(f"{float(self.shares[: int(width * s)].sum()):.1%} in the first {s:.0%}" for s in (0.9, 0.7))
        turn = f", a matrix in front of {self.entrance}" if self.entrance else ""
        return f"width {width}, {len(self.norms)} normalisations{turn}: {kept}; error {self.error:.1e}"


@dataclass(frozen=True)
class Rotation:
    """What :func:`rotate` did; ``str()`` of it tells it in a few lines.

    Args:
        streams: what was rotated.
        stayed: path of the first normalisation of each other axis that is normalised -> why it is none.
    """

    streams: tuple[RotatedStream, ...]
    stayed: Mapping[str, str]

    def __str__(self) -> str:
        return "\n".join([*map(str, self.streams), *(f"{path} stays: {why}" for path, why in self.stayed.items())])


def rotate(
    model: nn.Module,
    data: Iterable[Any] | Any,  # noqa: ANN401 - a LightningDataModule of either package
    *,
    example_inputs: Inputs | None = None,
    samples: int = 512,
    tolerance: float = 1e-9,
) -> Rotation:
    """Rotate the residual streams of a pre-norm transformer, so that what it computes stays and its width can shrink.

    LayerNorm is RMSNorm once what writes into the stream has no mean, and RMSNorm does not notice a rotation::

        LayerNorm(x) · g + b, read by W    =    RMSNorm(QᵀMx), read by W·diag(g)·Q, with W·b in its bias

    where M takes the mean away and the columns of Q are the eigenvectors of Σ nnᵀ over all that the normalisations
    give (n, without g and b), the largest eigenvalue first. QᵀM goes into every weight, embedding and position that
    writes, so no operator is added; where something else than a weight makes the first values, such as the GELU of a
    convolutional stem, one matrix stands in front of the first block. Afterwards the width is a channel group like
    others, and its last channels matter least.

    Call it before a run or :func:`lightning_prune.prune`, before an optimizer is built, and before
    ``load_state_dict`` of a checkpoint of the rotated model.

    Args:
        model: in any mode and on any device; it comes back in the same one.
        data: batches of inputs, of pairs (inputs, targets) or of dicts, or a LightningDataModule, whose training data
            is taken; no labels are looked at.
        example_inputs: arguments of forward; None: the model's ``example_input_array``, else the first of the data.
        samples: to look at.
        tolerance: largest relative error allowed between dense and rotated model at float64.

    Returns:
        What was rotated, and what was not and why.

    Raises:
        TypeError: an argument or a batch is of another kind.
        GraphError: the model cannot be traced, or it has no stream that could be rotated: the reason is in the text.
        NonFiniteError: what the model computes is NaN or infinite on the data.
        PruningError: the model carries masks.
        CompactionError: the rotated model would compute something else.

    Changes:
        the model: values of weights; normalisations, each an ``nn.RMSNorm`` whose vector is 1; biases of readers that
        had none; a head that is tied to an embedding gets a weight of its own; ``stream_turn`` in front of the first
        block behind a stem. Whatever is raised leaves it as it was.

    Source:
        Ashkboos et al., SliceGPT, 2024, with one rotation for all blocks, so that shortcuts need no matrices.

    Example:
        >>> class Net(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.inp, self.mlp = nn.Linear(4, 8), nn.Linear(8, 8)
        ...         self.norm, self.last = nn.LayerNorm(8), nn.LayerNorm(8)
        ...         self.out = nn.Linear(8, 2)
        ...     def forward(self, x):
        ...         x = self.inp(x)
        ...         return self.out(self.last(x + self.mlp(self.norm(x))))
        >>> net, x = Net(), torch.randn(64, 4)
        >>> wanted = net(x)
        >>> rotation = rotate(net, [x])
        >>> torch.allclose(net(x), wanted, atol=1e-4), rotation.streams[0].norms
        (True, ('norm', 'last'))
        >>> type(net.last).__name__
        'RMSNorm'
    """
    with examined(model, data, example_inputs, samples, tolerance, "rotate") as (batches, example, undo):
        streams, stayed = streams_of(model, example)
        if not streams:
            reasons = "; ".join(f"{path}: {reason}" for path, reason in stayed.items())
            raise GraphError(
                f"{type(model).__name__} has no residual stream that could be rotated ({reasons}). Heads, query and key"
                " and the units of the MLP can go as they are, and rotate_heads turns the slots within the heads"
            )
        rotated = list[RotatedStream]()
        for stream in streams:
            moments = Moments(model, stream)
            try:
                with torch.no_grad():
                    for batch in batches:
                        batch.on_device_of(model)(model)
            finally:
                moments.stop()
            directions, shares = moments.directions()
            turn = Turn(stream, directions)
            error = turn.prove(model, (example.args, example.kwargs), tolerance)
            turn.apply(model, undo)
            writers = tuple(dict.fromkeys(name for name, _ in stream.writers))
            readers = tuple(dict.fromkeys(reader.weight[0] for reader in stream.readers))
            rotated.append(RotatedStream(tuple(stream.norms), writers, readers, stream.entrance, shares, error))
        if example_of(model) is None:
            remember(model, example)
    return Rotation(tuple(rotated), stayed)


@contextmanager
def examined(
    model: nn.Module,
    data: Iterable[Any],
    example_inputs: Inputs | None,
    samples: int,
    tolerance: float,
    name: str,
) -> Iterator[tuple[list[Example], Example, Undo]]:
    """Check the arguments of a rotation; give batches, an example and an undo log, which runs when the block raises.

    Args:
        model: meanwhile in eval mode.
        data: as the user gives it.
        example_inputs: as the user gives them.
        samples: to look at.
        tolerance: of the proof.
        name: of the function, for errors.

    Raises:
        TypeError: an argument or a batch is of another kind.
        PruningError: the model carries masks.
    """
    check_whole("samples", samples, 1)
    check_number("tolerance", tolerance, 0)
    if not isinstance(model, nn.Module):
        raise TypeError(f"{name}(model, data): model must be an nn.Module, got {model!r:.80}")
    if masks.is_masked(model):
        raise PruningError(
            f"{type(model).__name__} carries masks: {name} it before a run, or call finalize(model) first"
        )
    with own_random_state(), as_evaluated(model), all_or_nothing() as undo:
        batches = [arguments_of(model, batch) for batch in first_batches(Passes(loader_of(data), model), samples)]
        own = example_of(model) if example_inputs is None else Example.of(example_inputs)
        yield batches, (learnt(batches[0]) if own is None else own).on_device_of(model), undo
