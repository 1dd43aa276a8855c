"""Where in the user's model an operator comes from, for errors that name only the operator."""

import os
import re
import sysconfig
import traceback
from pathlib import Path

import torch
from torch.export import ExportedProgram
from torch.fx import Node

_PACKAGES = Path(torch.__file__).parents[1]
_OURS = (
    *(f"{_PACKAGES / name}{os.sep}" for name in ("torch", "torchao", "executorch", "coremltools")),
    str(Path(__file__).parents[2]),
)
_LIBRARY = sysconfig.get_path("stdlib") + os.sep
"""Python's own library; a project's packages may lie in a folder of it."""
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in [^\n]*\n\s*(?P<code>[^\n]*)')
_OPERATOR = re.compile(r"torch\._ops\.(\w+\.\w+)|[Oo]perator: \[\d+\] (\w+::\w+)|kernel '(\w+::\w+)")


def first_line(error: BaseException | str) -> str:
    """Return the first line of a message that says something."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if line), type(error).__name__)


def origin(error: BaseException | str, program: ExportedProgram | None = None) -> str:
    """Return where in the user's model an error arose, as the end of a sentence; nothing where that is not known.

    Args:
        error: of torch.export, ExecuTorch or its runtime; an exception or what it says.
        program: as it was traced, to look up the operators that the message names.

    Example:
        >>> origin("no operator is named")
        ''
    """
    message = str(error)
    failing = failing_node(error) if isinstance(error, BaseException) and program is not None else None
    if failing is not None and (told := _of_node(failing)):
        return f", node {failing.name!r}{told}"
    for match in _OPERATOR.finditer(message) if program is not None else ():
        operator = next(name for name in match.groups() if name).replace(".", "::")
        if (node := _node(program, operator)) is not None:
            return _of_node(node)
    if line := _line(message):
        return _told("", line)
    frames = traceback.extract_tb(error.__traceback__) if isinstance(error, BaseException) else []
    return _told("", _line("\n".join(f'File "{f.filename}", line {f.lineno}, in {f.name}\n{f.line}' for f in frames)))


def failing_node(error: BaseException) -> Node | None:
    """Return the node of a graph that a pass or a backend was at when it failed; None where that is not known.

    Hardly any of them names it, so it is looked for among the variables of the calls, from the innermost on.
    """
    seen = set[int]()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        for frame, _ in reversed(list(traceback.walk_tb(cause.__traceback__))):
            held = dict(frame.f_locals)
            found = [held.get("node"), held.get("n"), *held.values()]
            nodes = [value for value in found if isinstance(value, Node) and value.op == "call_function"]
            if nodes:
                return nodes[0]
        cause = cause.__cause__ or cause.__context__
    return None


def _of_node(node: Node) -> str:
    path = list((node.meta.get("nn_module_stack") or {"": ("", "")}).values())[-1][0]
    module = path.removeprefix("model").removeprefix(".")
    return _told(module, _line(node.meta.get("stack_trace") or ""))


def _node(program: ExportedProgram | None, operator: str) -> Node | None:
    """Return the first node with an operator, of any overload; it may appear only when others are decomposed."""
    if program is None:
        return None
    if (found := _first(program, operator)) is not None:
        return found
    try:
        return _first(program.run_decompositions(), operator)
    except Exception:
        return None


def _first(program: ExportedProgram, operator: str) -> Node | None:
    for node in program.graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.name == operator:
            return node
    return None


def place(node: Node) -> str:
    """Return file and line of the user's code that a node comes from, as in ``net.py:12``; empty where not known."""
    return ":".join(_line(node.meta.get("stack_trace") or "").split(":")[:2])


def _line(text: str) -> str:
    """Return the innermost line of a stack that is not the toolchain's, Python's or ours."""
    frames = [
        m
        for m in _FRAME.finditer(text)
        if not m["file"].startswith((*_OURS, "<"))
        and (not m["file"].startswith(_LIBRARY) or "-packages" in m["file"].removeprefix(_LIBRARY))
    ]
    if not frames:
        return ""
    return f"{Path(frames[-1]['file']).name}:{frames[-1]['line']}: {frames[-1]['code'].strip()}"


def _told(module: str, line: str) -> str:
    parts = [f"in module {module!r}" if module else "", f"at {line}" if line else ""]
    text = ", ".join(part for part in parts if part)
    return f", {text}" if text else ""
