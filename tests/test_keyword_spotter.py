"""The example that hears a keyword: its voices, its network in one call and in steps, its counts, and a small run."""

import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield lambda name: runpy.run_path(str(EXAMPLES / name), run_name="example")
    for name in ("keyword_spotter_data", "keyword_spotter_model"):
        sys.modules.pop(name, None)


class TestVoices:
    def test_a_speaker_says_the_same_again_and_another_something_else(self, names: Any) -> None:
        stream = names("keyword_spotter_data.py")["stream"]
        first, again, other = stream(3, 6.0), stream(3, 6.0), stream(4, 6.0)
        assert np.array_equal(first.samples, again.samples)
        assert np.array_equal(first.words, again.words)
        assert not np.array_equal(first.samples, other.samples)
        assert first.samples.shape == (48_000,)
        assert first.samples.dtype == np.float32
        assert 0.01 < np.abs(first.samples).max() <= 1

    def test_the_first_formant_is_where_the_table_has_it(self, names: Any) -> None:
        data = names("keyword_spotter_data.py")
        spectra = {}
        for phone in ("i", "a"):
            _, voice, noise, formants, middle = data["PHONES"][phone]
            rows = np.array([(voice, noise, *formants, middle, 100.0)] * 100)
            samples = data["spoken"](rows, 1.0, 0.0, np.random.default_rng(0))
            power = np.abs(np.fft.rfft(samples)) ** 2
            spectra[phone] = [power[low:high].sum() for low, high in ((150, 450), (550, 950), (2000, 2500))]
        # power is taken over one second, so that a bin is one hertz: i has its first at 280 and its second at 2,250
        assert spectra["i"][0] > 4 * spectra["i"][1]
        assert spectra["a"][1] > 4 * spectra["a"][0]
        assert spectra["i"][2] > spectra["i"][1]

    def test_targets_stand_at_the_ends_of_keywords(self, names: Any) -> None:
        heard = names("keyword_spotter_data.py")["stream"](0, 60.0)
        assert len(heard.words) > 5
        expected = np.zeros(6000)
        for start, end in heard.words:
            assert 20 < end - start < 120
            expected[end - 2 : end + 9] = 1
        assert np.array_equal(heard.targets, expected)


def test_one_call_and_steps_give_the_same(names: Any) -> None:
    model = names("keyword_spotter_model.py")["Spotter"](width=8).eval()
    for norm in model.modules():
        if isinstance(norm, torch.nn.BatchNorm1d):
            torch.nn.init.normal_(norm.get_buffer("running_mean"))
            torch.nn.init.normal_(norm.bias)
    samples = 0.1 * torch.randn(2, 1, 80 * 90)
    with torch.no_grad():
        whole = model(samples)
        assert torch.equal(model(samples), whole)  # a whole stream leaves no trace
        for stream, expected in zip(samples, whole, strict=True):
            for buffer in (x for name, x in model.named_buffers() if name.endswith("past")):
                buffer.zero_()
            steps = [model(step.view(1, 1, 80)) for step in stream.view(-1, 80)]
            assert torch.allclose(torch.cat(steps, 2)[0], expected, atol=1e-5)


def test_alarms_and_what_is_counted(names: Any) -> None:
    data = names("keyword_spotter_data.py")
    words = np.array([[100, 150], [400, 450], [700, 750]])
    heard = data["Stream"](np.zeros(80 * 1000, np.float32), words)
    scores = np.full(1000, -1.0)
    scores[150:170] = 3  # the first; longer than the alarm rests it is not
    scores[480:490] = 3  # the second, 0.3 s late
    scores[810:820] = 3  # 0.6 s after the third: too late for it, a false alarm
    scores[900:903] = 3  # three steps are too few
    assert data["alarms"](scores, 2.0) == [153, 483, 813]  # at the fourth: its mean is 2.2
    missed, false = data["judged"]([scores], [heard], 2.0)
    assert missed == pytest.approx(1 / 3)
    assert false == pytest.approx(3600 / 10)
    assert data["judged"]([scores], [heard], 4.0) == (1.0, 0.0)
    threshold = data["chosen"]([scores], [heard], most=0)
    assert data["judged"]([scores], [heard], threshold)[1] == 0


@pytest.mark.slow
def test_a_small_run(names: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("executorch")
    rows = names("keyword_spotter.py")["main"](clips=96, voices=2, seconds=12, epochs=3, folder=tmp_path)
    dense, pruned = rows["dense"], rows["pruned, 8 bits"]
    assert pruned["MACs"] < dense["MACs"] == 125_280
    assert pruned["bytes"] < 0.6 * dense["bytes"]
    for row in (dense, pruned):
        assert 0 < row["ms"] < 10
        assert 0 <= row["missed"] <= 1
    assert (tmp_path / "pruned.pte").stat().st_size == pruned["bytes"]
    assert "false an hour" in capsys.readouterr().out
