"""What is asked for at first is there at once: names are imported at their first use, and help before everything."""

import ast
import subprocess
import sys
from pathlib import Path

import lightning_prune

SOURCE = Path(lightning_prune.__file__).read_text(encoding="utf-8")


def loaded_after(code: str) -> set[str]:
    """The modules of torch, Lightning and this package that a fresh process holds after some code."""
    tell = "import sys; print(*sys.modules, file=sys.stderr)"
    found = subprocess.run([sys.executable, "-c", f"{code}\n{tell}"], capture_output=True, text=True, check=True)
    return set(found.stderr.split())


def test_help_imports_no_torch() -> None:
    code = """
from lightning_prune.cli import main
for arguments in (["--help"], ["--version"], ["export", "--help"], ["inspect"]):
    try:
        main(arguments)
    except SystemExit:
        pass
"""
    assert not loaded_after(code) & {"torch", "numpy", "lightning", "torchmetrics"}


def test_a_recipe_needs_no_lightning() -> None:
    loaded = loaded_after("from lightning_prune import Channel, Polynomial, Recipe")
    assert "lightning_prune.recipe" in loaded
    assert not loaded & {"lightning", "lightning.pytorch", "lightning_prune.study", "lightning_prune.deploy"}


def test_every_name_is_there_and_type_checkers_see_the_same() -> None:
    (guarded,) = (node for node in ast.parse(SOURCE).body if isinstance(node, ast.If))
    seen = {
        alias.name: node.module for node in guarded.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    homes = lightning_prune._HOMES.items()
    names = {name: f"lightning_prune.{home}" for home, several in homes for name in several.split()}
    assert names == seen
    assert sorted([*names, "__version__"]) == sorted(lightning_prune.__all__) == dir(lightning_prune)
    for name, home in names.items():
        assert getattr(lightning_prune, name) is getattr(sys.modules[home], name)
    assert not hasattr(lightning_prune, "nothing")
