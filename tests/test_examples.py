"""The examples and the code blocks of the documentation run."""

import ast
import doctest
import json
import os
import re
import runpy
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

import lightning_prune
import lightning_prune.deploy
import lightning_prune.study
from lightning_prune import Channel, Mask, Polynomial, PruningCallback, Recipe, Rewarm, Targets, Taylor, summarize

ROOT = Path(__file__).parent.parent
PAGES = sorted(path.name for path in (ROOT / "docs").glob("*.md"))
BLOCK = re.compile(r"^```(python|pycon)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NEEDS = {
    "advice.md": "executorch",
    **dict.fromkeys(
        ("apps.md", "cli.md", "export.md", "extending.md", "generation.md", "index.md", "inspect-benchmark.md"),
        "executorch",
    ),
    "quantization.md": "executorch",
    "checkpoints.md": "sklearn",
}
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def example(name: str) -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "examples" / name), run_name="example")


class TestExamples:
    def test_elements_of_a_plain_module(self, capsys: pytest.CaptureFixture[str]) -> None:
        pytest.importorskip("sklearn")
        zeros = example("elements_plain_module.py")["main"](epochs=2)
        # 8,832 weights may be pruned among 8,970 parameters; biases stay
        assert zeros["element"] == round(0.9 * 8832) / 8970
        assert zeros["2 of 4"] == 0.5 * 8832 / 8970
        assert zeros["block"] == round(0.7 * 8832 / 8) * 8 / 8970
        assert zeros["mixed"] == (round(0.9 * 4096) + 0.5 * (8832 - 4096)) / 8970
        assert "2 of 4" in capsys.readouterr().out

    def test_recipe_in_yaml(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        pytest.importorskip("sklearn")
        pytest.importorskip("jsonargparse")
        from lightning.pytorch.cli import LightningCLI

        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["cli.py"])
        # Lightning 2.6 calls what jsonargparse 4.49 deprecated
        monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
        names = example("cli.py")
        config = str(ROOT / "examples" / "cli.yaml")
        args = ["fit", "--config", config, "--trainer.max_epochs=2", "--trainer.enable_progress_bar=false"]
        cli = LightningCLI(names["Digits"], names["DigitsData"], save_config_callback=None, args=args)
        callbacks = cli.trainer.callbacks  # type: ignore[attr-defined]
        (callback,) = (one for one in callbacks if isinstance(one, PruningCallback))
        schedule = Polynomial(final_sparsity=0.5, begin_step=0.2, end_step=0.8, frequency=10)
        assert callback.recipes == (
            Recipe(
                granularity=Channel(round_to=4),
                schedule=schedule,
                criterion=Taylor(),
                targets=Targets(exclude=("head.2",)),
                count="macs",
                optimizer_policy=[Mask(), Rewarm(3)],
            ),
        )
        macs, dense = summarize(cli.model).macs, summarize(names["Digits"]()).macs
        assert macs is not None
        assert dense is not None
        assert macs <= 0.5 * dense

    @pytest.mark.slow
    def test_yaml_from_a_shell(self, tmp_path: Path) -> None:
        pytest.importorskip("sklearn")
        pytest.importorskip("jsonargparse")
        command = [sys.executable, ROOT / "examples/cli.py", "fit", "--config", ROOT / "examples/cli.yaml"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*command, "--trainer.max_epochs=1"], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert "features.0  Conv2d" in done.stdout

    @pytest.mark.slow
    def test_digits(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for extra in ("sklearn", "executorch"):
            pytest.importorskip(extra)
        out = tmp_path / "out"
        monkeypatch.setattr(sys, "argv", ["digits.py", "--epochs", "2", "--out", str(out)])
        with warnings.catch_warnings():
            example("digits.py")["main"]()
        names = [f"{name}.{suffix}" for name in ("dense", "channels", "elements") for suffix in ("pte", "json")]
        assert sorted(path.name for path in out.iterdir()) == sorted([*names, "digits_report.html"])
        rows = re.findall(r"^ *(dense|channels|elements) .* (\d+\.\d\d)x$", capsys.readouterr().out, re.MULTILINE)
        assert [name for name, _ in rows] == ["dense", "channels", "elements"]
        assert rows[0] == ("dense", "1.00")


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_what_an_example_writes_lies_where_git_does_not_look(path: Path) -> None:
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert {"/out/", "/examples/*/model/"} <= set(ignored)
    mains = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)]
    for default in (default for node in mains if node.name == "main" for default in node.args.defaults):
        where = ast.unparse(default)
        assert not where.startswith("Path(") or where.startswith(("Path('out')", "Path('out/")), f"{where} of {path}"


NOTEBOOKS = sorted(path.name for path in (ROOT / "examples").glob("*.ipynb"))


def notebook(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "examples" / name).read_text(encoding="utf-8"))


def kinds(cells: list[dict[str, Any]]) -> list[list[str]]:
    """What each code cell shows: tables, pictures, text."""
    return [
        [kind for output in cell["outputs"] for kind in output.get("data", {"stream": ""})]
        for cell in cells
        if cell["cell_type"] == "code"
    ]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_has_been_run_from_top_to_bottom(name: str) -> None:
    cells = [cell for cell in notebook(name)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    shown = {kind for several in kinds(cells) for kind in several}
    assert shown >= {"text/html", "image/svg+xml", "text/plain"}
    assert str(ROOT) not in json.dumps(cells)


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs_and_shows_what_it_shows(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for extra in ("sklearn", "executorch"):
        pytest.importorskip(extra)
    monkeypatch.chdir(tmp_path)
    found = notebook(name)
    before = kinds(found["cells"])
    with warnings.catch_warnings():
        runpy.run_path(str(ROOT / "scripts" / "run_notebook.py"))["run"](found)
    assert kinds(found["cells"]) == before


def run_blocks(text: str, name: str) -> int:
    """Run the python and pycon blocks of a page in order, in one namespace; return how many there are."""
    names: dict[str, Any] = {"__name__": name}
    count = 0
    for block in BLOCK.finditer(text):
        line = text.count("\n", 0, block.start(2))
        count += 1
        if block[1] == "python":
            exec(compile("\n" * line + block[2], name, "exec"), names)
        else:
            parsed = doctest.DocTestParser().get_doctest(block[2], names, f"{name}:{line}", name, line)
            runner = doctest.DocTestRunner(optionflags=FLAGS, verbose=False)
            report: list[str] = []
            runner.run(parsed, out=report.append, clear_globs=False)
            names.update(parsed.globs)
            assert runner.failures == 0, "".join(report)
    return count


@pytest.mark.parametrize("page", PAGES)
def test_documentation_runs(page: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if page in NEEDS:
        pytest.importorskip(NEEDS[page])
    monkeypatch.chdir(tmp_path)
    run_blocks((ROOT / "docs" / page).read_text(encoding="utf-8"), page)


def test_api_page_has_every_public_name() -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    tables = text[: text.index("What follows")]
    named = set(re.findall(r"`(\w+)(?: <[\w.]+>)?`", tables))
    public = {*lightning_prune.__all__, *lightning_prune.deploy.__all__, *lightning_prune.study.__all__}
    assert public <= named, f"missing: {sorted(public - named)}"
