"""The examples of the study stage run at small size."""

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield lambda name: runpy.run_path(str(EXAMPLES / name), run_name="example")
    sys.modules.pop("code_lines_data", None)


@pytest.mark.slow
def test_compare(example: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    path = example("compare.py")["main"](epochs=2, seeds=1, width=8, path=tmp_path / "compare.html")
    text = path.read_text(encoding="utf-8")
    printed = capsys.readouterr().out
    for name in ("taylor, gradual", "magnitude, gradual", "taylor, at once", "dense"):
        assert name in text
        assert name in printed
    for title in ("Over the run", "Layers before and after", "Recipes beside each other", "Sensitivity", "Scores"):
        assert title in text


class TestLines:
    def test_no_file_is_on_both_sides(self, example: Any) -> None:
        names = example("code_lines_data.py")
        for package in names["PACKAGES"]:
            found = names["files"](package)
            assert found == names["files"](package)
            assert len(set(found)) == len(found)
            assert not any("test" in path.parts for path in found)
        train, test = names["split"](50)
        for side in (train, test):
            lines, labels = side.tensors
            assert lines.shape[1] == names["LENGTH"]
            assert (lines[:, :4] > 0).all()
            assert labels.unique().tolist() == list(range(len(names["PACKAGES"])))
            assert torch.bincount(labels).max() <= 50

    def test_an_unknown_package(self, example: Any) -> None:
        with pytest.raises(FileNotFoundError, match="has 0 source files, at least 4 are needed; name another package"):
            example("code_lines_data.py")["files"]("no_such_package")

    @pytest.mark.slow
    def test_code_lines(self, example: Any, tmp_path: Path) -> None:
        pytest.importorskip("executorch")
        found = example("code_lines.py")["main"](epochs=1, most=300, path=tmp_path / "code.pte")
        assert found["MACs after"] <= 0.4 * found["MACs before"]
        assert 0 < found["pruned"] <= 1
        assert all(1 <= heads <= 4 for heads in found["heads"])
        assert (tmp_path / "code.pte").stat().st_size == found["bytes"]
