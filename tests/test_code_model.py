"""The example that trains, prunes and exports a language model of Python, and its data."""

import json
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

EXAMPLES = Path(__file__).parent.parent / "examples"
NAMES = ("code_model_data", "code_model_decoder")


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import code_model_data  # pyright: ignore[reportMissingImports]
    import code_model_decoder  # noqa: F401  # pyright: ignore[reportMissingImports]

    yield code_model_data
    for name in NAMES:
        sys.modules.pop(name, None)


def test_texts_are_bytes_of_files_of_one_side(data: Any) -> None:
    train, test = data.split(64)
    assert (train.shape, test.shape) == ((64, 129), (8, 129))
    sides: list[str] = ["", ""]
    for index, path in enumerate(data.sources()):
        sides[index % 8 == 7] += path.read_bytes().decode("latin-1").replace("    ", "\t")
    for texts, (own, other) in ((train, sides), (test, sides[::-1])):
        written = [bytes(text.tolist()).decode("latin-1") for text in texts]
        assert all(text in own for text in written)
        assert sum(text in other for text in written) < len(written) / 4


def test_every_byte_is_a_token_of_its_own_number(data: Any, tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    path = data.write_tokenizer(tmp_path / "tokenizer.json")
    vocabulary = json.loads(path.read_text(encoding="utf-8"))["model"]["vocab"]
    assert sorted(vocabulary.values()) == list(range(256))
    text = "def f(é):\n\treturn '…'"
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    assert tokenizer.encode(text).ids == data.tokens(text) == list(text.encode())
    assert tokenizer.decode(data.tokens(text)) == text


def test_with_its_cache_the_decoder_gives_what_it_gives_in_training(data: Any) -> None:
    torch.manual_seed(0)
    model = sys.modules["code_model_decoder"].Decoder(32, 4, 2, 48, 2, 24).eval()
    text = torch.randint(256, (1, 20))
    with torch.no_grad():
        wanted = model(text)[0]
        got = [model(text[:, :9], torch.arange(9))[0, 0]]
        got += [model(text[:, at : at + 1], torch.tensor([at]))[0, 0] for at in range(9, 20)]
    torch.testing.assert_close(torch.stack(got), wanted[8:], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_pruned_it_completes_lines_with_less(data: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("executorch")
    main = runpy.run_path(str(EXAMPLES / "code_model.py"), run_name="example")["main"]
    rows = main(texts=1280, folder=tmp_path, width=64, heads=4, groups=2, hidden=192, depth=1)
    dense, pruned = rows["dense"], rows["pruned"]
    assert pruned["MACs"] < 0.75 * dense["MACs"]
    assert pruned["bytes"] < 0.9 * dense["bytes"]
    assert dense["bits per byte"] < 6
    assert pruned["bits per byte"] < dense["bits per byte"] + 0.5
    assert len([line for line in capsys.readouterr().out.splitlines() if line.startswith("  import ")]) == 2
    assert {path.name for path in tmp_path.iterdir()} >= {"dense.pte", "pruned.pte", "tokenizer.json"}
