import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_python_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = README.read_text()
    assert BLOCK.search(text)
    namespace: dict[str, object] = {"__name__": "readme"}
    for block in BLOCK.finditer(text):
        first_line = text.count("\n", 0, block.start(1))
        exec(compile("\n" * first_line + block[1], README, "exec"), namespace)


def code_lines(page: Path) -> Iterator[str]:
    """The lines that a page of the documentation shows as code, those of its examples where it is a module."""
    text = page.read_text()
    if page.suffix == ".ipynb":
        for cell in json.loads(text)["cells"]:
            yield from "".join(cell["source"]).splitlines() if cell["cell_type"] == "code" else ()
        return
    if page.suffix == ".md":
        parts = re.split(r"^(```.*)\n", text, flags=re.MULTILINE)
        for fence, part in zip(parts[1::4], parts[2::4], strict=True):
            yield from () if "{" in fence else part.splitlines()
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            lines = map(str.strip, (ast.get_docstring(node) or "").splitlines())
            yield from (line for line in lines if line.startswith((">>>", "... ")))


@pytest.mark.parametrize("folder", ["docs/*.md", "README.md", "examples/*.ipynb", "lightning_prune/**/*.py"])
def test_code_is_not_cut_off_on_a_screen_of_1280_pixels(folder: str) -> None:
    wide = [
        f"{page.name}: {line}" for page in README.parent.glob(folder) for line in code_lines(page) if len(line) > 88
    ]
    assert wide == []
