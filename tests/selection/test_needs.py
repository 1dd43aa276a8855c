"""What the pruned network has to come down to."""

import re
from pathlib import Path

import pytest
import torch
from support import Net, loader, trainer
from torch import nn

from lightning_prune import (
    Channel,
    Element,
    Fisher,
    MACs,
    OneShot,
    Params,
    Polynomial,
    PruningCallback,
    Recipe,
    Size,
    Uniform,
    prune,
    summarize,
)
from lightning_prune.deploy import Int8
from lightning_prune.deploy.quantization import Int4Groupwise
from lightning_prune.run.binding import bind
from lightning_prune.selection.needs import Need


def network() -> nn.Sequential:
    """Return a network of two hidden layers."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))


def pruned(need: Need | tuple[Need, ...], **options: object):
    """Return the network before and after."""
    model, data = network(), [torch.randn(64, 8) for _ in range(2)]
    report = prune(model, Recipe(granularity=Channel(), need=need, schedule=OneShot(), **options), data)  # type: ignore[arg-type]
    return report.before, report.after


@pytest.mark.parametrize("options", [{}, {"allocation": Uniform()}], ids=str)
def test_a_trained_model_comes_down_to_each_need(options: dict[str, object]):
    before, after = pruned(Params(0.5), **options)
    assert 0.45 < after.parameters / before.parameters <= 0.5
    assert before.macs is not None
    _, after = pruned(MACs(700), **options)
    assert after.macs is not None
    assert 600 < after.macs <= 700
    _, after = pruned(Size(3000), **options)
    assert 2500 < 4 * after.parameters <= 3000
    _, after = pruned((Params(0.4), Size(3000)), **options)
    assert after.parameters <= 0.4 * before.parameters
    assert 4 * after.parameters <= 3000


def test_a_fit_ends_at_the_need_in_the_steps_of_the_schedule(tmp_path: Path):
    model = Net()
    before = summarize(model, model.example_input_array)
    recipe = Recipe(granularity=Channel(), need=Params(0.5), schedule=Polynomial(begin_step=2, end_step=8, frequency=2))
    callback = PruningCallback(recipe)
    trainer(tmp_path, callback, max_steps=12, max_epochs=-1).fit(model, loader())
    steps = [event.step for event in callback.events]
    assert steps == [4, 6, 8]
    assert summarize(model, model.example_input_array).parameters <= 0.5 * before.parameters
    asked = [event.asked for event in callback.events]
    assert asked == sorted(asked)
    assert asked[-1] == pytest.approx(0.5)


def test_several_needs_are_met_at_once_by_a_single_event():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(512, 32),
        nn.ReLU(),
        nn.Linear(32, 4),
    )
    data = [(torch.randn(32, 3, 16, 16), torch.randint(4, (32,))) for _ in range(2)]
    recipe = Recipe(granularity=Channel(), need=(MACs(0.3), Params(0.3)), schedule=OneShot(), criterion=Fisher())

    def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    report = prune(net, recipe, data, loss=loss)
    assert report.before.macs is not None
    assert report.after.macs is not None
    shares = report.after.macs / report.before.macs, report.after.parameters / report.before.parameters
    assert max(shares) <= 0.3
    assert max(shares) > 0.25  # and not far less than is allowed


def test_attention_counts_as_it_shrinks():
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    net = nn.Sequential(nn.Linear(6, 32), nn.TransformerEncoder(block, 2, enable_nested_tensor=False), nn.Linear(32, 4))
    data = [torch.randn(32, 10, 6)]
    report = prune(net, Recipe(granularity=Channel(), need=MACs(0.55), schedule=OneShot()), data)
    assert report.before.macs is not None
    assert report.after.macs is not None
    assert 0.4 < report.after.macs / report.before.macs <= 0.55


def test_bytes_count_how_wide_weights_will_be():
    costs = {}
    for quantization in (None, Int8, Int4Groupwise()):
        recipe = Recipe(granularity=Channel(), need=Size(1, quantization), schedule=OneShot())
        with pytest.raises(ValueError, match=r"dense ([\d,]+) bytes") as caught:
            bind(recipe, network(), torch.zeros(1, 8))
        dense = re.search(r"dense ([\d,]+) bytes", str(caught.value))
        assert dense is not None
        costs[quantization] = int(dense[1].replace(",", ""))
    weights, biases = 8 * 32 + 32 * 32 + 32 * 4, 32 + 32 + 4
    assert list(costs.values()) == [4 * (weights + biases), weights + 4 * biases, weights * 4.5 / 8 + 4 * biases]


def test_what_cannot_be_met_is_refused_with_the_least_and_what_holds_it():
    recipe = Recipe(granularity=Channel(), need=Params(10), schedule=OneShot())
    with pytest.raises(
        ValueError, match=r"Params\(left=10\) cannot be met: 19 parameters is the least .* held by 0\.weight"
    ):
        bind(recipe, network(), torch.zeros(1, 8))


def test_and_with_the_channel_groups_that_stay():
    model = nn.Sequential(nn.Linear(8, 32), nn.LayerNorm(32), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4))
    recipe = Recipe(granularity=Channel(), need=Params(100), schedule=OneShot())
    with pytest.raises(ValueError, match=r"1 channel group stays: layer_norm at 1 normalises it \(0\)$"):
        bind(recipe, model, torch.zeros(1, 8))


def test_a_network_that_meets_the_need_as_it_is_is_refused():
    recipe = Recipe(granularity=Channel(), need=Params(10**6), schedule=OneShot())
    with pytest.raises(ValueError, match=r"meets .* as it is: nothing has to be pruned"):
        bind(recipe, network(), torch.zeros(1, 8))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"schedule": OneShot(0.5)}, "ends at a sparsity of its own"),
        ({"count": "macs"}, "leave count out"),
        ({"granularity": Element()}, "needs granularity=Channel"),
        ({"need": ()}, "is empty"),
        ({"need": 0.5}, "must be one such as MACs"),
        ({"need": None}, "has no final_sparsity"),
    ],
    ids=str,
)
def test_what_contradicts_a_need_is_refused(options: dict[str, object], said: str):
    usual: dict[str, object] = {"granularity": Channel(), "need": MACs(0.5), "schedule": OneShot()}
    with pytest.raises((ValueError, TypeError), match=said):
        Recipe(**{**usual, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [0, 0.0, 1.0, 1.5, -3, True, "half", float("nan")], ids=repr)
def test_amounts_are_checked(wrong: object):
    with pytest.raises((ValueError, TypeError), match=r"MACs\.left"):
        MACs(wrong)  # type: ignore[arg-type]
    with pytest.raises((ValueError, TypeError), match=r"Params\.left"):
        Params(wrong)  # type: ignore[arg-type]
    if wrong != 1.0 or isinstance(wrong, bool):
        with pytest.raises((ValueError, TypeError), match=r"Size\.bytes"):
            Size(wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"Size\.quantization"):
        Size(10, "int8")  # type: ignore[arg-type]
