"""Families of ATen operators that share one rule."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_prune.graph.trace import Call


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


COPIES = _words(
    "clone contiguous alias detach dropout feature_dropout alpha_dropout feature_alpha_dropout to _to_copy type_as "
    "lift_fresh_copy lift_fresh zeros_like ones_like full_like empty_like rand_like randn_like float half double "
    "zero fill positive"
)
"""Operators whose result has the axes of their first argument."""

FILLS = _words("zeros_like ones_like full_like empty_like rand_like randn_like zero fill")
"""Those of them that take its axes and leave its entries."""

UNTAGGED = _words(
    "hardswish log_sigmoid true_divide square float_power __and__ __or__ __xor__ multiply subtract divide absolute "
    "negative clip greater greater_equal less less_equal not_equal polar complex conj real imag"
)
"""Pointwise operators that torch does not tag."""

RESHAPES = _words("view reshape _unsafe_view flatten squeeze unsqueeze unflatten view_as reshape_as _reshape_alias")
"""Operators that keep the order of the entries and change the shape."""

MOVES = _words(
    "permute transpose t mT numpy_T movedim moveaxis swapaxes expand broadcast_to repeat tile repeat_interleave flip "
    "roll"
)
"""Operators that move the entries of one tensor, or repeat them, whatever they are."""

PARTS = _words("split split_with_sizes chunk unbind select slice narrow")
"""Operators that take stretches of one tensor."""

JOINS = _words("cat concat stack")
"""Operators that lay tensors side by side."""

CREATIONS = _words(
    "arange zeros ones full empty scalar_tensor new_ones new_zeros new_full new_empty eye linspace rand randn tensor "
    "tril_indices triu_indices"
)
"""Operators that make a constant."""

LOSSES = _words(
    "cross_entropy_loss nll_loss nll_loss_nd nll_loss2d mse_loss l1_loss smooth_l1_loss huber_loss soft_margin_loss "
    "binary_cross_entropy binary_cross_entropy_with_logits kl_div poisson_nll_loss margin_ranking_loss ctc_loss "
    "multi_margin_loss multilabel_margin_loss hinge_embedding_loss cosine_embedding_loss triplet_margin_loss"
)
"""Losses, which a forward that is given labels computes: what they compare is an output of the model."""

SPATIAL = {
    f"{kind}{count}d{suffix}": count
    for kind in (
        *("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "_adaptive_avg_pool"),
        *("upsample_nearest", "_upsample_nearest_exact"),
    )
    for count in (1, 2, 3)
    for suffix in ("", "_with_indices")
} | {
    "max_unpool2d": 2,
    "max_unpool3d": 3,
    "upsample_linear1d": 1,
    "upsample_bilinear2d": 2,
    "upsample_bicubic2d": 2,
    "_upsample_bilinear2d_aa": 2,
    "_upsample_bicubic2d_aa": 2,
    "upsample_trilinear3d": 3,
    "reflection_pad1d": 1,
    "reflection_pad2d": 2,
    "reflection_pad3d": 3,
    "replication_pad1d": 1,
    "replication_pad2d": 2,
    "replication_pad3d": 3,
}
"""Operators that mix the last axes, as many as given here, in each channel by itself."""

REDUCTIONS = _words(
    "mean sum amax amin var std prod any all argmax argmin norm linalg_vector_norm logsumexp max min var_mean std_mean "
    "median count_nonzero"
)
"""Operators that reduce the axes ``dim``, or all of them."""

AVERAGES = _words("mean sum var std var_mean std_mean norm linalg_vector_norm")
"""Reductions that a normalisation is made of."""

DEVIATIONS = _words("var std var_mean std_mean")
"""Statistics that come beside a mean."""

ALONG = _words("softmax log_softmax _softmax _log_softmax cumsum cumprod sort topk argsort")
"""Operators that mix the entries along one axis ``dim`` and keep the number of axes."""


def base_name(operator: str) -> str:
    """Return the name without the underscore of the in-place form.

    Example:
        >>> base_name("add_"), base_name("_softmax"), base_name("__and__")
        ('add', '_softmax', '__and__')
    """
    return operator if operator.startswith("__") else operator.rstrip("_")


def is_pointwise(call: Call) -> bool:
    """Tell whether each entry of the result depends on the same entry of the (broadcast) arguments alone.

    torch tags such operators, but not every overload and in-place form of them.
    """
    name = base_name(call.operator)
    packet = getattr(torch.ops.aten, name, None)
    if not isinstance(call.output, Tensor) or packet is None or not str(call.node.target).startswith("aten."):
        return False
    overloads = (getattr(packet, overload) for overload in packet.overloads())
    return name in UNTAGGED or any(torch.Tag.pointwise in overload.tags for overload in overloads)
