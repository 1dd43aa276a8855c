"""The slots within attention heads turned so that the last of them matter least."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_prune.compaction.heads import HeadMoments, HeadTurn
from lightning_prune.errors import GraphError
from lightning_prune.graph.heads import head_pairs
from lightning_prune.model.attention import calling_projections
from lightning_prune.model.example import Inputs
from lightning_prune.trained.rotate import examined


@dataclass(frozen=True)
class RotatedHeads:
    """Heads of one attention that were rotated.

    Args:
        place: path of the module whose code multiplies them.
        is_of_values: whether these are values and what reads them; else queries and keys.
        weights: dense names of what was turned.
        shares: of the second moments of the scores, or of what the values add to the output, that each slot carries,
            descending; shape (heads, slots), of grouped queries one row for each head of keys.
    """

    place: str
    is_of_values: bool
    weights: tuple[str, ...]
    shares: Tensor

    def __str__(self) -> str:
        heads, slots = self.shares.shape
        half = float(self.shares[:, : slots // 2].sum(1).mean())
        what = "value and output" if self.is_of_values else "query and key"
        return f"{self.place or 'the model itself'}, {what}: {heads} heads of {slots}, {half:.1%} in the first half"


@dataclass(frozen=True)
class HeadRotation:
    """What :func:`rotate_heads` did; ``str()`` of it tells it in a line for each attention.

    Args:
        heads: what was rotated.
        stayed: what was not -> why.
        error: largest relative error between the dense and the rotated model at float64.
    """

    heads: tuple[RotatedHeads, ...]
    stayed: Mapping[str, str]
    error: float

    def __str__(self) -> str:
        return "\n".join([*map(str, self.heads), *(f"{what} stays: {why}" for what, why in self.stayed.items())])


def rotate_heads(
    model: nn.Module,
    data: Iterable[Any] | Any,  # noqa: ANN401 - a LightningDataModule of either package
    *,
    example_inputs: Inputs | None = None,
    samples: int = 512,
    tolerance: float = 1e-9,
) -> HeadRotation:
    """Rotate the slots within each attention head, so that what a model computes stays and its heads can be narrower.

    Scores are products of query and key, outputs are products of values and the columns that read them::

        (q T) (k T⁻ᵀ)ᵀ = q kᵀ            (P v S) (O S⁻ᵀ)ᵀ = P v Oᵀ

    T is chosen so that both sides have the same second moments over ``data``, diagonal, the largest first: no other n
    slots give as good a product as the first n. It goes into the weights and biases of query, key, value and output;
    no operator is added. Afterwards the width of the heads (``Channel(attention="width")``) is a channel group like
    others, and its last slots matter least.

    It needs no pre-norm: BERT's heads can be rotated. For models whose stream can be rotated as well call
    :func:`lightning_prune.rotate` first. Nothing that tells slots apart may stand between: rotary positions and norms
    of query and key leave these as they are, and the values of the same attention are rotated all the same.

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
        GraphError: the model cannot be traced, or it has no head that could be rotated: the reason is in the text.
        NonFiniteError: what the model computes is NaN or infinite on the data.
        PruningError: the model carries masks.
        CompactionError: the rotated model would compute something else.

    Changes:
        the model: values of weights and biases. Whatever is raised leaves it as it was.

    Example:
        >>> layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        >>> net = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False).eval()
        >>> x = torch.randn(64, 5, 16)
        >>> wanted = net(x)
        >>> rotation = rotate_heads(net, [x])
        >>> torch.allclose(net(x), wanted, atol=1e-4)
        True
        >>> [(heads.place, tuple(heads.shares.shape)) for heads in rotation.heads]
        [('layers.0.self_attn', (2, 8)), ('layers.0.self_attn', (2, 8))]
    """
    with examined(model, data, example_inputs, samples, tolerance, "rotate_heads") as (batches, example, undo):
        pairs, stayed = head_pairs(model, example)
        if not pairs:
            reasons = "; ".join(f"{what}: {reason}" for what, reason in stayed.items()) or "no attention"
            raise GraphError(f"{type(model).__name__} has no head whose slots could be rotated ({reasons})")
        moments = HeadMoments(model, pairs)
        try:
            with torch.no_grad(), calling_projections(model):
                for batch in batches:
                    batch.on_device_of(model)(model)
        finally:
            moments.stop()
        turns, shares = zip(*moments.turns(), strict=True)
        turn = HeadTurn(pairs, turns)
        error = turn.prove(model, (example.args, example.kwargs), tolerance)
        turn.apply(model, undo)
    rotated = list[RotatedHeads]()
    kinds = [(pair.place, pair.is_of_values, len(own)) for pair, own in zip(pairs, shares, strict=True)]
    for kind in dict.fromkeys(kinds):
        own = [at for at, other in enumerate(kinds) if other == kind]
        weights = (slots.weight for at in own for slots in (*pairs[at].left, *pairs[at].right))
        rotated.append(RotatedHeads(*kind[:2], tuple(dict.fromkeys(weights)), torch.stack([shares[at] for at in own])))
    return HeadRotation(tuple(rotated), stayed, error)
