"""The pages on the house name what is there: rooms in order, files, functions; what is copied is short and narrow."""

import ast
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_layout import ORDER

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
EXTENDING = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
ROOMS = [name for name in ORDER if not name.startswith("_")]
NAMED = sorted(set(re.findall(r"`([\w/]+\.py)`\s+`([\w.]+)`", PAGE)))


def test_the_table_has_the_rooms_in_order() -> None:
    table = PAGE[PAGE.index("| Room |") : PAGE.index("## The path of one weight")]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == ROOMS


def test_the_picture_has_the_rooms_in_order() -> None:
    picture = (ROOT / "docs" / "architecture.svg").read_text(encoding="utf-8")
    shapes = re.findall(r'<rect class="room \w+" x="(\d+)" y="(\d+)".*?\n.*?class="name".*?>(\w+)<', picture)
    # from the bottom up, in a storey from left to right
    assert [name for _, _, name in sorted(shapes, key=lambda room: (-int(room[1]), int(room[0])))] == ROOMS


def test_the_picture_numbers_the_rooms_of_an_event() -> None:
    picture = (ROOT / "docs" / "architecture.svg").read_text(encoding="utf-8")
    shapes = re.findall(
        r'<rect class="room \w+" x="(\d+)" y="(\d+)" width="(\d+)" height="(\d+)".*?\n.*?class="name".*?>(\w+)<',
        picture,
    )
    circles = re.findall(r'<circle class="in-event" cx="(\d+)" cy="(\d+)".*?<text class="number".*?>(\d)<', picture)
    rooms = dict[int, str]()
    for x, y, number in circles:
        for left, top, width, height, name in shapes:
            if 0 <= int(x) - int(left) <= int(width) and 0 <= int(y) - int(top) <= int(height):
                rooms[int(number)] = name
    stages = ["trainer", "run", "schedules", "criteria", "selection", "model", "compensation", "optimizer"]
    assert rooms == dict(enumerate(stages, 1))  # repair comes between the masks and the optimizer, as in prune_step


@pytest.mark.parametrize(("file", "name"), NAMED, ids=[" ".join(named) for named in NAMED])
def test_what_the_paths_name_is_there(file: str, name: str) -> None:
    body = ast.parse((ROOT / "lightning_prune" / file).read_text(encoding="utf-8")).body
    for part in name.split("."):
        places = {node.name: node for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
        assert part in places, f"{file} has no {name}"
        body = places[part].body


def test_each_path_names_files() -> None:
    for path in ("weight", "mask", "plan", "program"):
        start = PAGE.index(f"## The path of one {path}")
        assert len(re.findall(r"`[\w/]+\.py` `", PAGE[start : PAGE.index("\n## ", start + 1)])) >= 5


def test_files_and_tests_of_extensions_are_there() -> None:
    table = EXTENDING[EXTENDING.index("| ---") : EXTENDING.index("## A schedule")]
    paths = re.findall(r"`((?:[\w]+/)*\w+\.py|(?:\w+/)+)`", table)
    assert len(paths) >= 14
    for path in paths:
        assert (ROOT / path if path.startswith("tests/") else ROOT / "lightning_prune" / path).exists(), path


BLOCKS = re.findall(r"^```python\n(.*?)^```$", EXTENDING, re.MULTILINE | re.DOTALL)


def test_extensions_pass_the_linter_as_they_stand(tmp_path: Path) -> None:
    ruff = shutil.which("ruff", path=Path(sys.executable).parent) or pytest.skip("ruff is not installed")
    earlier: list[str] = []
    for number, block in enumerate(BLOCKS):
        file = tmp_path / f"block{number}.py"
        file.write_text(block, encoding="utf-8")
        # a block is no module with a docstring of its own, and may use what the page has defined before it
        known = ["--ignore=D100", "--config", f"builtins = {json.dumps(earlier)}"]
        for command in (["check", "--quiet", *known], ["format", "--check", "--quiet", "--diff"]):
            told = subprocess.run(
                [ruff, *command, "--config", str(ROOT / "docs" / "ruff.toml"), "--no-cache", str(file)],
                capture_output=True,
                text=True,
                cwd=ROOT,
                check=False,
            )
            assert told.returncode == 0, told.stdout + told.stderr
        earlier += [node.name for node in ast.parse(block).body if isinstance(node, ast.ClassDef | ast.FunctionDef)]


def test_extensions_are_short() -> None:
    assert len(BLOCKS) >= 6
    for block in BLOCKS:
        lines = [line for line in block.splitlines() if line.strip()]
        assert len(lines) <= 15, f"{len(lines)} lines:\n{block}"


def test_the_api_page_has_the_public_modules() -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w.]+)` \| (.*) \|$", text[text.index("## All public modules") :], re.MULTILINE)
    listed = {f"{package}.{name}" for package, names in rows for name in re.findall(r"`(\w+)`", names)}
    files = (ROOT / "lightning_prune").rglob("*.py")
    dotted = {".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files}
    assert listed == {name for name in dotted if "._" not in name}


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
    wide = [f"{page.name}: {line}" for page in ROOT.glob(folder) for line in code_lines(page) if len(line) > 88]
    assert wide == []
