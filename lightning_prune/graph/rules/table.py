"""Every ATen operator that is understood, and the rule for it.

To add one: write ``def my_rule(call, flow) -> Dims`` in the module of its family, enter it in ``RULES`` under the
operator's ATen name (in-place forms find the same entry), and test it in ``tests/graph/test_rules.py``. A rule reads
axes with ``flow.of(node)``, joins them with ``flow.join``, keeps them with ``flow.freeze(dims, reason)``, and returns
the axes of the result (a list of them for several results). Outside of this package, :func:`add_rule` does the same.
"""

from __future__ import annotations

import torch
from torch import fx

from lightning_prune.graph.flow import Rule
from lightning_prune.graph.rules import contraction, elementwise, layout, normalisation, parts, recurrent, writing
from lightning_prune.graph.rules.einsum import einsum
from lightning_prune.graph.rules.families import (
    ALONG,
    COPIES,
    CREATIONS,
    LOSSES,
    REDUCTIONS,
    RESHAPES,
    SPATIAL,
    base_name,
    is_pointwise,
)
from lightning_prune.graph.rules.reshape import reshape
from lightning_prune.graph.trace import Call

RULES: dict[str, Rule] = {
    **dict.fromkeys(COPIES, elementwise.copy),
    **dict.fromkeys(CREATIONS, elementwise.create),
    **dict.fromkeys(RESHAPES, reshape),
    **dict.fromkeys(SPATIAL, normalisation.spatial),
    "max_unpool2d": normalisation.unpool,
    "max_unpool3d": normalisation.unpool,
    **dict.fromkeys(REDUCTIONS, normalisation.reduce),
    **dict.fromkeys(ALONG, normalisation.along),
    **dict.fromkeys(recurrent.GATES, recurrent.recurrent),
    **{f"{kind}_cell": recurrent.cell for kind in recurrent.GATES},
    **dict.fromkeys(LOSSES, normalisation.keep_whole),
    "conv1d": contraction.conv,
    "conv2d": contraction.conv,
    "conv3d": contraction.conv,
    "conv_transpose1d": contraction.conv_transpose,
    "conv_transpose2d": contraction.conv_transpose,
    "conv_transpose3d": contraction.conv_transpose,
    "linear": contraction.linear,
    "matmul": contraction.matmul,
    "mm": contraction.matmul,
    "bmm": contraction.matmul,
    "_grouped_mm": contraction.grouped_mm,
    "grouped_mm_fallback": contraction.grouped_mm,  # of transformers 5
    "mv": contraction.matrix_vector,
    "dot": contraction.dot,
    "vdot": contraction.dot,
    "addmm": contraction.addmm,
    "baddbmm": contraction.baddbmm,
    "einsum": einsum,
    "scaled_dot_product_attention": contraction.attention,
    "embedding": contraction.embedding,
    "batch_norm": normalisation.batch_norm,
    "instance_norm": normalisation.batch_norm,
    "layer_norm": normalisation.layer_norm,
    "rms_norm": normalisation.rms_norm,
    "group_norm": normalisation.group_norm,
    "copy": elementwise.pointwise,
    "prelu": elementwise.prelu,
    "glu": elementwise.glu,
    "permute": layout.permute,
    "transpose": layout.transpose,
    "swapaxes": layout.transpose,
    "mT": layout.swap_last,
    "movedim": layout.movedim,
    "moveaxis": layout.movedim,
    "t": layout.reverse,
    "numpy_T": layout.reverse,
    "expand": layout.expand,
    "expand_as": layout.expand_as,
    "broadcast_to": layout.expand,
    "view_as_complex": layout.as_complex,
    "view_as_real": layout.as_real,
    "repeat": layout.repeat,
    "tile": layout.repeat,
    "repeat_interleave": layout.repeat_interleave,
    "flip": layout.flip,
    "cat": layout.cat,
    "concat": layout.cat,
    "stack": layout.stack,
    "split": parts.split,
    "split_with_sizes": parts.split,
    "chunk": parts.chunk,
    "unbind": parts.drop_axis,
    "select": parts.drop_axis,
    "slice": parts.resized,
    "narrow": parts.resized,
    "pad": parts.pad,
    "constant_pad_nd": parts.pad,
    "roll": layout.roll,
    "index": layout.index,
    "gather": layout.gather,
    "index_select": layout.index_select,
    "index_add": writing.index_copy,
    "index_copy": writing.index_copy,
    "index_put": writing.index_put,
    "scatter": writing.scatter,
    "unfold": layout.windows,
    "tril": layout.triangle,
    "triu": layout.triangle,
    "im2col": layout.im2col,
    "col2im": layout.col2im,
    "_weight_norm": normalisation.weight_norm,
    "pixel_shuffle": layout.pixel_shuffle,
    "pixel_unshuffle": layout.pixel_unshuffle,
    "channel_shuffle": layout.channel_shuffle,
}


def add_rule(operator: str, rule: Rule) -> None:
    """Let :func:`lightning_prune.channel_groups` understand an operator, or understand it otherwise.

    Args:
        operator: its name without namespace and overload; ``twice`` for ``demo::twice``. In-place forms find it too.
        rule: ``rule(call, flow)`` returns the axes of the result, a list of them for several results. ``call["x"]`` is
            the argument that is called x in the operator's schema, ``flow.of(node)`` the axes of a tensor,
            ``flow.join(a, b)`` makes two axes one, ``flow.freeze(dims, "why")`` keeps them.

    Raises:
        ValueError: the operator has a namespace or an overload in its name, or none at all.
        TypeError: the rule cannot be called.

    Changes:
        the rules of this process, for all models traced from now on.
    """
    if not operator.isidentifier() or base_name(operator) != operator:
        raise ValueError(
            f"operator must be a name without namespace, overload and trailing underscore, such as 'twice' for"
            f" torch.ops.demo.twice.default, got {operator!r}"
        )
    if not callable(rule):
        raise TypeError(f"the rule for {operator} must be a function of (call, flow), got {rule!r}")
    RULES[operator] = rule


def rule_of(call: Call) -> Rule | None:
    """Return the rule for a call: its entry, the one of pointwise operators, or None."""
    if not isinstance(call.node.target, torch._ops.OpOverload):
        return None
    if call.operator.startswith(("_assert", "sym_", "_guard")):
        return lambda call, flow: None  # checks return no tensor
    name = base_name(call.operator)
    is_other_overload = name in REDUCTIONS and isinstance(call.get("other"), fx.Node)
    if name in RULES and not is_other_overload:
        return RULES[name]
    return elementwise.pointwise if is_pointwise(call) else None
