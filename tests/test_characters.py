"""The rendered characters, and the example that makes a meter reader of them."""

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parent.parent


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> Any:
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    from examples import characters_data

    yield characters_data
    sys.modules.pop("characters_data", None)


def test_images_are_told_by_their_seed_and_fonts(data: Any) -> None:
    one, same, other = (data.characters(2, seed=seed).tensors for seed in (0, 0, 1))
    assert one[0].shape == (188, 1, 32, 32)
    assert torch.equal(one[0], same[0])
    assert not torch.equal(one[0], other[0])
    assert one[1].bincount().tolist() == [2] * 94
    assert bool(one[0].isfinite().all())
    assert not set(data.TEST_FONTS) & set(data.TRAIN_FONTS)


def test_every_font_has_every_character(data: Any) -> None:
    for fonts in (data.TRAIN_FONTS, data.TEST_FONTS):
        images, targets = data.glyphs(1, fonts).tensors
        assert bool((images.flatten(1).amax(1) > 0.3).all())
        for font in range(len(fonts)):
            part = images[font * 94 : (font + 1) * 94].flatten(1)
            assert len(part.unique(dim=0)) == 94  # a missing glyph would be drawn as the same box as another one
        assert targets.bincount().tolist() == [len(fonts)] * 94


@pytest.mark.slow
def test_example_ends_with_a_verified_file(data: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("executorch")
    import warnings

    main = runpy.run_path(str(ROOT / "examples" / "characters.py"), run_name="example")["main"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        artifact = main(times=1, epochs=2, width=8, folder=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"digits.pte", "digits.json"}
    assert set(artifact.metrics) == {"eager", "executorch"}
    manifest = artifact.manifest()
    assert manifest["labels"] == list("0123456789")
    assert manifest["quantization"]["methods"]["forward"]["kept_float"] == []
    printed = capsys.readouterr().out
    for part in ("cut from 94 classes to 10", "in all", "multiply-accumulates are left", "quantized"):
        assert part in printed


@pytest.mark.slow
def test_benchmark_runs(data: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import warnings

    from benchmarks import characters

    argv = ["characters", "--seeds", "1", "--times", "1", "--epochs", "2", "--width", "8"]
    monkeypatch.setattr(sys, "argv", argv)
    with warnings.catch_warnings():
        characters.main()
    assert "gained by distillation" in capsys.readouterr().out
