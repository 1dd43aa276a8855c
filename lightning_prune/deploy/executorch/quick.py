"""Lowering of many small programs without what torch and ExecuTorch do over and over, and with the same bytes.

Seen in torch 2.13 and ExecuTorch 1.4.1; whatever a later version no longer does twice can go here.
"""

import gc
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.fx import traceback
from torch.fx.graph import _PyTreeCodeGen

from lightning_prune.deploy.executorch._unchanged import Known, decomposing, decompositions, passing
from lightning_prune.deploy.executorch.quiet import imported


@contextmanager
def quick_graphs() -> Iterator[None]:
    """Let graphs be edited, copied and traced in the block without what nobody reads of them.

    - Python code is written of a graph when it is first called, not after each edit; most graphs never are.
    - Where a node came from is a chain that grows by a link with each copy of a graph: links are shared by the copies.
    - Garbage is not searched for: torch's own millions of objects were gone through each time, a sixth of the
      processor time.
    """
    recompile = fx.GraphModule.recompile

    class Forward:
        """Writes the code of the graph once it is asked for."""

        def __get__(self, module: Any, kind: type | None = None) -> Any:  # noqa: ANN401
            if module is None:
                return self
            recompile(module)
            return module.forward

    def later(self: Any) -> None:  # noqa: ANN401
        if isinstance(self._graph._codegen, _PyTreeCodeGen):
            self._in_spec, self._out_spec = self._graph._codegen.pytree_info[1:3]
        type(self).forward = Forward()  # each graph module has a class of its own

    collects = gc.isenabled()
    gc.disable()
    try:
        with (
            _replaced(fx.GraphModule, "recompile", later),
            # debug messages that nobody sees would hold the code
            _replaced(fx.GraphModule, "__str__", lambda self: type(self).__name__),
            _replaced(traceback, "copy", SimpleNamespace(deepcopy=list, copy=dict)),
        ):
            yield
    finally:
        if collects:
            gc.enable()


@contextmanager
def quick() -> Iterator[None]:
    """Let programs be lowered in the block without passes that leave them as they are.

    - Of the three decompositions of a lowering those are made that find something to decompose, and they know the
      composite operators of the program alone; torch lists all, some thousand, and puts a function in place of each.
    - Two dozen passes of ExecuTorch run the graph node by node to write it anew, most of them after they changed
      nothing: what every value is has been worked out then.
    - A program is not verified after each pass.
    """
    passes, managers = imported("executorch.exir.pass_base"), imported("executorch.exir.pass_manager")
    lowering = imported("executorch.exir.program._program")
    known = Known()
    registered = len(torch._C._dispatch_get_registrations_for_dispatch_key("CompositeImplicitAutograd"))
    table, composite = decompositions(lowering._default_decomposition_table, registered)

    def nothing(*_: Any) -> None:
        """Verify nothing."""

    with ExitStack() as stack:
        stack.enter_context(quick_graphs())
        for place, name, function in (
            (ExportedProgram, "run_decompositions", decomposing(known, composite)),
            (lowering, "_default_decomposition_table", lambda: dict(table)),
            (passes._ExportPassBase, "call", passing(known, passes)),
            (managers.ExportedProgramPassManager, "check", nothing),
            (ExportedProgram, "validate", nothing),
            (ExportedProgram, "_validate", nothing),
        ):
            stack.enter_context(_replaced(place, name, function))
        yield


@contextmanager
def _replaced(place: Any, name: str, function: object) -> Iterator[None]:  # noqa: ANN401
    before = vars(place)[name]
    setattr(place, name, function)
    try:
        yield
    finally:
        setattr(place, name, before)
