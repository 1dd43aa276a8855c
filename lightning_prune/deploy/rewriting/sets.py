"""Which replacements serve which backend."""

from collections.abc import Sequence

from torch.export import ExportedProgram

from lightning_prune.deploy.rewriting.attention import ATTENTION, PRODUCTS, WHOLE, WITH_ANY_MASK
from lightning_prune.deploy.rewriting.constants import fold_constants, fold_weights
from lightning_prune.deploy.rewriting.editing import Rewrite, by_operator
from lightning_prune.deploy.rewriting.functional import any_strides, functional
from lightning_prune.deploy.rewriting.infinities import FILLS, INFINITIES
from lightning_prune.deploy.rewriting.moves import with_one_scale
from lightning_prune.deploy.rewriting.reductions import POOLING, REDUCTIONS, SEQUENCES
from lightning_prune.deploy.rewriting.refusing import refuse_volumes
from lightning_prune.deploy.rewriting.shapes import SHAPES

DEFAULT: Sequence[Rewrite] = (refuse_volumes, fold_weights, by_operator(POOLING))
"""What is done for every backend."""
FOR_XNNPACK: Sequence[Rewrite] = (
    fold_constants,
    by_operator(ATTENTION | PRODUCTS | REDUCTIONS | SEQUENCES | FILLS),
    by_operator(SHAPES),
    with_one_scale,
)
"""What XNNPACK would leave outside, in the operators that it has."""
FOR_COREML: Sequence[Rewrite] = (by_operator(WHOLE),)
"""What Core ML keeps whole."""
FOR_VULKAN: Sequence[Rewrite] = (fold_constants, by_operator(WITH_ANY_MASK | SEQUENCES | INFINITIES))
"""What has infinities in it, which Vulkan's file format cannot hold."""


def rewritten(program: ExportedProgram, rewrites: Sequence[Rewrite]) -> ExportedProgram:
    """Return a traced program after the rewrites; the one given may be changed.

    Operators that change a tensor in place are replaced first, so that a view may become a copy.
    """
    if not rewrites:
        return program
    program = functional(program)
    any_strides(program)
    for rewrite in rewrites:
        rewrite(program)
    return program
