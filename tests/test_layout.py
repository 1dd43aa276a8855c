"""The order of the rooms is the order in which they may import each other (docs/architecture.md)."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "lightning_prune"
ORDER = (
    *(
        "_version",
        "errors",
        "values",
        "documents",
        "tables",
        "distributed",
        "model",
        "schedules",
        "criteria",
        "graph",
        "selection",
        "compensation",
    ),
    *("optimizer", "compaction", "guard", "recipe", "run", "checkpoints", "distillation", "classes"),
    *("deploy", "trainer", "data", "study", "trained", "cli", "__init__"),
)
ONLY_IN = {
    "lightning": ("trainer",),
    "pytorch_lightning": ("trainer",),
    "jsonargparse": ("cli",),
    "executorch": ("deploy",),
    "torchao": ("deploy",),
    "coremltools": ("deploy",),
}
LAZY = ("executorch", "torchao", "coremltools", "matplotlib")
FILES = sorted(PACKAGE.rglob("*.py"))


def is_deferred(node: ast.AST) -> bool:
    """Whether what stands in node runs after the import of its module, if ever."""
    if isinstance(node, ast.If):
        return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)


def imports(node: ast.AST, deferred: bool = False) -> Iterator[tuple[str, bool]]:
    """Dotted name of everything imported under node, and whether that is deferred."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name, deferred) for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and child.module == "lightning_prune":
            yield from ((f"lightning_prune.{alias.name}", deferred) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield child.module or "", deferred
        else:
            yield from imports(child, deferred or is_deferred(child))


def room(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_follow_the_layout(file: Path) -> None:
    own = room(file)
    assert own in ORDER, f"{own} has no place in ORDER"
    for name, deferred in imports(ast.parse(file.read_text())):
        root, *rest = name.split(".")
        if root == "lightning_prune" and rest:
            assert rest[0] in ORDER[: ORDER.index(own) + 1], f"{own} may not import {rest[0]}"
        assert own in ONLY_IN.get(root, (own,)), f"{root} belongs to {ONLY_IN.get(root)}, not to {own}"
        assert deferred or root not in LAZY, f"{own} imports {root} outside of a function"


def test_few_modules_lie_beside_the_rooms() -> None:
    assert len([file for file in PACKAGE.glob("[!_]*.py")]) <= 6
