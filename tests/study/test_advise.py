"""Yes where pruning pays, no where it does not, and a figure in every line."""

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from study_cases import batches, untouched
from support import Net
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_prune.model.example import Example, learnt, remember
from lightning_prune.study import Advice, Comparison, Row, advise
from lightning_prune.study._programs import ProgramCost, narrower, sparser
from lightning_prune.study.advise import judged
from lightning_prune.study.training import Outcome


def timed(whole: float, empty: float, half: float, least: float, zeros: float = 1.0) -> dict[str, ProgramCost]:
    times = {"whole": whole, "empty": empty, "half": half, "least": least, "zeros": zeros * whole}
    return {name: ProgramCost(1000, 900, ms, ms / whole) for name, ms in times.items()}


def control(pruned: float, small: float, spread: float = 0.0) -> Comparison:
    def row(name: str, metric: float, is_control: bool) -> Row:
        both = tuple(Outcome(name, seed, metric + sign * spread, 10, 10, 1, 1, 1.0) for seed, sign in ((0, -1), (1, 1)))
        return Row(name, is_control, 10.0, 0, 1, both)

    rows = (row("channels", pruned, False), row("small dense 50.00%", small, True))
    return Comparison(rows, "macs", "acc", True, 5)


@pytest.mark.parametrize(
    ("found", "comparison", "is_yes", "reason"),
    [
        (timed(1.0, 0.01, 0.4, 0.1), None, True, "half of the channels gone saves 0.6000 ms (0.40×)"),
        (timed(0.01, 0.009, 0.0095, 0.0092), None, False, "the model is too small for its overhead"),
        (timed(1.0, 0.3, 0.75, 0.5), None, False, "saves 0.2500 ms (0.75×), less than such a call"),
        (timed(1.0, 0.01, 0.95, 0.5), None, False, "saves 0.0500 ms (0.95×), less than 10%"),
        (timed(1.0, 0.01, 0.88, 0.85), None, False, "85% of the latency is left: it is in operators that pruning does"),
        (timed(1.0, 0.01, 0.4, 0.1), control(0.9, 0.8), True, "acc 0.9000 ± 0.0000 of 'channels' against 0.8000"),
        (timed(1.0, 0.01, 0.4, 0.1), control(0.9, 0.91), False, "the small dense network is just as good"),
        (timed(1.0, 0.01, 0.4, 0.1), control(0.9, 0.89, 0.1), False, "the small dense network is just as good"),
    ],
)
def test_what_speaks_for_and_against(
    found: dict[str, ProgramCost], comparison: Comparison | None, is_yes: bool, reason: str
) -> None:
    is_prune, findings = judged(found, "", comparison)
    assert is_prune is is_yes
    assert any(reason in finding.text for finding in findings), [finding.text for finding in findings]
    assert all(re.search(r"\d", finding.text) for finding in findings)
    assert not is_yes or all(finding.speaks_for is not False for finding in findings)


def test_a_backend_that_uses_zeros_and_one_that_ignores_them() -> None:
    _, ignoring = judged(timed(1.0, 0.01, 0.4, 0.1), "", None)
    assert any("the backend ignores zeros" in finding.text for finding in ignoring)
    _, using = judged(timed(1.0, 0.01, 0.4, 0.1, zeros=0.5), "", None)
    assert not any("ignores" in finding.text for finding in using)


def test_a_backend_that_runs_elsewhere_is_judged_by_size() -> None:
    found = {name: replace(one, ms=None, ratio=None) for name, one in timed(1.0, 0.01, 0.4, 0.1).items()}
    assert judged(found, "", None)[0] is False
    assert judged(found | {"half": ProgramCost(300, 200, None, None)}, "", None)[0] is True


def test_nothing_to_remove() -> None:
    found = {name: one for name, one in timed(1.0, 0.1, 1, 1).items() if name not in ("half", "least")}
    is_prune, findings = judged(found, "no channel of the chosen targets can be removed", None)
    assert not is_prune
    assert findings[0].text == "no channel can be removed: no channel of the chosen targets can be removed"


def test_the_text() -> None:
    is_prune, findings = judged(timed(1.0, 0.01, 0.4, 0.1), "", None)
    lines = str(Advice(is_prune, findings, ("a recipe",), {})).splitlines()
    assert lines[0] == "prune: yes"
    assert lines[-2:] == ["try first:", "  1. a recipe"]
    assert str(Advice(False, (), (), {})) == "prune: no"


def test_variants_are_copies() -> None:
    model = Net()
    with untouched(model):
        half = narrower(model, 0.5, (torch.zeros(2, 1, 6, 6),))
        least = narrower(model, None, (torch.zeros(2, 1, 6, 6),))
        zeros: Any = sparser(model, 0.9)
    assert (half.conv2.out_channels, half.conv3.out_channels) == (4, 4)  # type: ignore[union-attr]
    assert (least.conv2.out_channels, least.conv3.out_channels) == (1, 1)  # type: ignore[union-attr]
    weights = torch.cat([p.flatten() for n, p in zeros.named_parameters() if p.dim() > 1])
    assert float((weights == 0).float().mean()) == pytest.approx(0.9, abs=0.01)


class TestMeasured:
    """The two networks that the answer is known of, exported and timed."""

    def backend(self) -> Any:
        pytest.importorskip("executorch")
        from lightning_prune.deploy import XNNPACK

        return XNNPACK()

    @pytest.mark.slow
    def test_no_on_a_perceptron_of_a_thousand_parameters(self) -> None:
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 13), nn.ReLU(), nn.Linear(13, 10))
        data = DataLoader(TensorDataset(torch.randn(32, 1, 8, 8), torch.randint(10, (32,))), 8)
        with untouched(model):
            advice = advise(model, data, backend=self.backend())
        assert str(advice).startswith("prune: no\n")
        assert any("too small for its overhead" in finding.text for finding in advice.findings)
        assert advice.first == ()

    @pytest.mark.slow
    def test_yes_on_the_residual_network(self) -> None:
        model = Wide()
        data = DataLoader(TensorDataset(torch.randn(16, 1, 6, 6), torch.randint(4, (16,))), 8)
        with untouched(model):
            advice = advise(model, data, self.backend())
        assert str(advice).startswith("prune: yes\n")
        assert any("half of" in text and "moves the loss from" in text for text in advice.first)
        assert advice.programs["half"].bytes < 0.5 * advice.programs["whole"].bytes


class Wide(Net):
    """The residual network with 64 channels, which is work for a processor."""

    def __init__(self) -> None:
        super().__init__(width=64)


class TestBadInput:
    def test_loaders(self) -> None:
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        backend: Any = None
        with pytest.raises(ValueError, match="the loader is empty"):
            advise(model, [], backend=backend)
        with pytest.raises(ValueError, match="the loader gives no tensor to run Sequential on"):
            advise(model, [["a"]], backend=backend)

    def test_what_is_wrong_is_said_before_anything_is_exported(self) -> None:
        net, backend = Net(), None
        for error, text, given in (
            (TypeError, "metric must be a torchmetrics metric", {"metric": "accuracy"}),
            (TypeError, r"comparison must be what compare\(…\) returned", {"comparison": "small dense"}),
            (ValueError, "returned a tensor of shape", {"metric": lambda model, batch: model(batch[0])}),
        ):
            options: Any = given
            with untouched(net), pytest.raises(error, match=text):
                advise(net, batches(), backend=backend, **options)  # type: ignore[arg-type]

    def test_a_model_that_does_not_run_on_the_first_sample(self) -> None:
        net, backend = nn.Linear(3, 2), None
        with untouched(net), pytest.raises(ValueError, match=r"Linear rejects the example input \(1, 1, 6, 6\)"):
            advise(net, batches(), backend=backend)  # type: ignore[arg-type]


def test_the_sample_is_one_row() -> None:
    from lightning_prune.study.advise import sample

    found: tuple[Tensor, ...] = sample(nn.Linear(3, 2), batches(), None)
    assert [tuple(x.shape) for x in found] == [(1, 1, 6, 6)]
    assert [tuple(x.shape) for x in sample(Net(), batches(), None)] == [(2, 1, 6, 6)]
    net = nn.Linear(3, 2)
    remember(net, learnt(Example((torch.zeros(8, 3),))))
    assert [tuple(x.shape) for x in sample(net, batches(), None)] == [(1, 3)]
