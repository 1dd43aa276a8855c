"""Lowering of many small programs without what each of them would search anew."""

import gc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch._export.utils as utils
from torch.export import ExportedProgram, exported_program


@contextmanager
def quick(programs: Iterable[ExportedProgram]) -> Iterator[None]:
    """Let decompositions in the block know the operators of these programs alone.

    Each of the three decompositions of a lowering (torch 2.13, ``torch/export/exported_program.py``) lists all
    composite operators that there are, some thousand, and puts a function in the place of each; a cell has five
    operators. What is lowered comes out the same. To be left when torch remembers the list.

    Nor is garbage searched for meanwhile: torch's own millions of objects were gone through each time, a sixth of the
    processor time.
    """
    split, collect = exported_program._split_decomp_table_to_cia_and_python_decomp, utils._collect_all_valid_cia_ops
    present = {node.target for each in programs for node in each.graph.nodes if node.op == "call_function"}
    held = set(collect())

    def few(table: Any) -> Any:  # noqa: ANN401
        composite, others = split(table)
        return {operator: function for operator, function in composite.items() if operator in present}, others

    replaced = {
        (exported_program, "_split_decomp_table_to_cia_and_python_decomp"): few,
        (exported_program, "_collect_all_valid_cia_ops"): lambda: held,
        (utils, "_materialize_cpp_cia_ops"): lambda: None,
    }
    before = {(module, name): getattr(module, name) for module, name in replaced}
    collects = gc.isenabled()
    gc.disable()
    try:
        for (module, name), function in replaced.items():
            setattr(module, name, function)
        yield
    finally:
        for (module, name), function in before.items():
            setattr(module, name, function)
        if collects:
            gc.enable()
