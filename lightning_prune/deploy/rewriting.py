"""Plain replacements in a traced graph, so that a backend takes what would needlessly stay outside."""

from collections.abc import Callable, Sequence

import torch

Rewrite = Callable[[torch.fx.GraphModule], int]
"""Changes a traced graph in place and returns at how many places; the graph computes what it computed before."""

DEFAULT: Sequence[Rewrite] = ()
"""What is done for every backend."""


def rewritten(program: torch.export.ExportedProgram, rewrites: Sequence[Rewrite]) -> torch.export.ExportedProgram:
    """Return a traced program after the rewrites; the same one where none of them found anything to change."""
    for rewrite in rewrites:
        if rewrite(program.graph_module):
            program.graph_module.graph.lint()
            program.graph_module.recompile()
    return program
