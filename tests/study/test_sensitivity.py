"""The metric against the sparsity of each layer: exact, resumable, and nothing changed."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from study_cases import Chatty, accuracy, batches, plain_loss, untouched
from support import LinearNet, Net, loader, trainer
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from lightning_prune import Channel, Element, FromSensitivity, PruningCallback, Recipe, Targets, Taylor
from lightning_prune.errors import NonFiniteError, PruningError
from lightning_prune.model import masks
from lightning_prune.schedules import OneShot
from lightning_prune.selection.allocation import Candidates
from lightning_prune.study import Sensitivity, sensitivity, significance

LEVELS = (0.25, 0.5, 0.75)


def curve(**metrics: tuple[float, ...]) -> Sensitivity:
    return Sensitivity(1.0, LEVELS, metrics, dict.fromkeys(metrics, 8), True, "Channel()", "Magnitude(norm=1)", "acc")


def loss_at(model: Any, group: str, share: float) -> float:
    """The loss with the weakest channels of one group zeroed by hand."""
    size = {"conv1": 8, "conv2": 8}[group]
    made, read = {"conv1": ("conv3", ["conv2", "head"]), "conv2": ("conv2", ["conv3"])}[group]
    if group == "conv2":
        score = model.conv2.weight.abs().sum((1, 2, 3)) + model.conv2.bias.abs() + model.norm2.weight.abs()
        score = score + model.norm2.bias.abs() + model.conv3.weight.abs().sum((0, 2, 3))
    else:
        raise NotImplementedError(made)
    gone = score.argsort()[: round(share * size)]
    other = Net().eval()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        for name in read:
            getattr(other, name).weight[:, gone] = 0
        losses = [float(plain_loss(other, batch)) for batch in batches()]
    return sum(losses) / len(losses)


@pytest.mark.parametrize("granularity", [Channel(), Element()], ids=["channel", "element"])
def test_the_model_is_untouched(granularity: Any) -> None:
    model = Chatty()
    model.conv2.eval()
    with untouched(model):
        found = sensitivity(model, batches(), metric=accuracy, granularity=granularity, levels=LEVELS)
    assert found.levels == LEVELS
    assert all(len(values) == 3 for values in found.metrics.values())


def test_points_are_those_of_channels_zeroed_by_hand() -> None:
    model = Net()
    found = sensitivity(model, batches(), metric=plain_loss, levels=LEVELS, layers=["conv2"], higher_is_better=False)
    for level, value in zip(LEVELS, found.metrics["conv2"], strict=True):
        assert value == pytest.approx(loss_at(model, "conv2", level), rel=1e-5)


def test_a_metric_of_torchmetrics_and_the_same_by_hand() -> None:
    metric = MulticlassAccuracy(4, average="micro")
    model = Net()
    by_metric = sensitivity(model, batches(), metric=metric, levels=LEVELS)
    by_hand = sensitivity(model, batches(), metric=accuracy, levels=LEVELS)
    assert by_metric.base == pytest.approx(by_hand.base)
    assert by_metric.higher_is_better
    for name, values in by_metric.metrics.items():
        assert values == pytest.approx(by_hand.metrics[name])
    assert metric.update_count == 0


def test_at_most_one_pass_for_each_point_and_one_for_the_whole() -> None:
    passes = []

    class Counted(list[Any]):
        def __iter__(self) -> Any:
            passes.append(1)
            return super().__iter__()

    # of 8 channels, 0.49 and 0.5 both remove 4, and 0.01 removes none
    found = sensitivity(Net(), Counted(batches()), metric=accuracy, levels=(0.01, 0.49, 0.5))
    assert len(passes) == 1 + len(found.metrics)
    for values in found.metrics.values():
        assert values[0] == found.base
        assert values[1] == values[2]


def test_a_masked_model_keeps_its_masks() -> None:
    model = Net()
    masks.attach(model, ["conv1.weight", "conv2.weight"])
    keep = torch.rand(8, 8, 3, 3) > 0.5
    masks.write(model, [("conv2.weight", keep)])
    with untouched(model):
        shown = model.conv2.weight.detach().clone()
        found = sensitivity(model, batches(), metric=accuracy, granularity=Element(), levels=(0.2, 0.9))
        assert torch.equal(model.conv2.weight.detach(), shown)
    assert found.metrics["conv2.weight"][0] == found.base  # more than that is gone already


def test_a_stopped_measurement_goes_on(tmp_path: Path) -> None:
    file, model = tmp_path / "curve.json", Net()
    whole = sensitivity(model, batches(), metric=plain_loss, levels=LEVELS)
    count = 0

    def plain(one: nn.Module, batch: list[Tensor]) -> Tensor:
        nonlocal count
        count += 1
        if count > 3 * 4:
            raise KeyboardInterrupt
        return plain_loss(one, batch)

    plain.__name__ = plain_loss.__name__
    with untouched(model), pytest.raises(KeyboardInterrupt):
        sensitivity(model, batches(), metric=plain, levels=LEVELS, path=file)
    with pytest.raises(ValueError, match=r"the curve lacks 3 points; run sensitivity\(…, path=…\) again"):
        Sensitivity.from_json(file.read_text())
    count = -100
    resumed = sensitivity(model, batches(), metric=plain, levels=LEVELS, path=file)
    assert count == -100 + 3 * 3
    assert resumed.metrics == whole.metrics
    assert Sensitivity.from_json(file.read_text()) == resumed == Sensitivity.from_json(resumed.to_json())
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_of_another_measurement(tmp_path: Path) -> None:
    file, model = tmp_path / "curve.json", Net()
    sensitivity(model, batches(), metric=accuracy, levels=LEVELS, path=file)
    for options, field in (
        ({"levels": (0.5,)}, "levels"),
        ({"metric": plain_loss}, "metric"),
        ({"granularity": Element()}, "granularity"),
    ):
        given: Any = {"metric": accuracy, "levels": LEVELS, "path": file} | options
        with pytest.raises(ValueError, match=f"holds another measurement: its .*{field}"):
            sensitivity(model, batches(), **given)
    with torch.no_grad():
        model.conv1.weight[0] += 1
    with pytest.raises(ValueError, match="holds another measurement: its weights differ"):
        sensitivity(model, batches(), metric=accuracy, levels=LEVELS, path=file)
    for text, message in (
        ("{", "is no JSON text"),
        ("{}", '"format" is not'),
        ("[]", '"format" is not'),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            sensitivity(model, batches(), metric=accuracy, levels=LEVELS, path=file)
    plain = json.loads(curve(a=(1, 1, 1)).to_json())
    for change in ({"metrics": 3}, {"metrics": {"a": 3}}, {"metrics": {}}, {"levels": [None]}, {"sizes": {"a": "b"}}):
        with pytest.raises(ValueError, match="the sensitivity curve is malformed"):
            Sensitivity.from_json(json.dumps(plain | change))
    document = plain | {"version": 9}
    with pytest.raises(ValueError, match="the sensitivity curve is of version 9"):
        Sensitivity.from_json(json.dumps(document))


def test_limits_lie_between_the_points() -> None:
    found = curve(flat=(1.0, 1.0, 1.0), steep=(0.5, 0.4, 0.3), late=(1.0, 0.98, 0.9), broken=(1.0, math.nan, 1.0))
    limits = found.limits(0.04)
    assert limits == pytest.approx({"flat": 0.75, "steep": 0.02, "late": 0.5 + 0.25 * 0.25, "broken": 0.25})
    assert found.limits(0.0)["late"] == 0.25
    with pytest.raises(ValueError, match="max_drop must be a number at least 0"):
        found.limits(-1)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.6, 0.9, 1.0])
def test_shares_from_a_curve(share: float) -> None:
    allocation = FromSensitivity(curve(a=(1.0, 1.0, 1.0), b=(0.5, 0.4, 0.3)), max_drop=0.1)
    sizes = {"a": 10, "b": 30}
    candidates = Candidates({n: torch.zeros(s) for n, s in sizes.items()}, {}, sizes, dict.fromkeys(sizes, 0))
    shares = allocation(share, candidates)
    assert sum(shares[name] * size for name, size in sizes.items()) == pytest.approx(share * 40)
    assert all(0 <= one <= 1 for one in shares.values())
    assert shares["a"] >= shares["b"]
    assert allocation == FromSensitivity({"a": 0.75, "b": 0.05}, max_drop=0.1)


def test_shares_of_a_curve_that_lacks_a_layer() -> None:
    sizes = {"a": 10, "c": 30}
    candidates = Candidates({n: torch.zeros(s) for n, s in sizes.items()}, {}, sizes, dict.fromkeys(sizes, 0))
    with pytest.raises(ValueError, match=r"no entry for c; it has .'a', 'b'."):
        FromSensitivity({"a": 0.5, "b": 0.5})(0.5, candidates)
    with pytest.raises(ValueError, match=r"gives a the limit 1\.5"):
        FromSensitivity({"a": 1.5})
    with pytest.raises(ValueError, match="max_drop must be a number above 0"):
        FromSensitivity({"a": 0.5}, max_drop=0)


def test_a_recipe_with_a_curve(tmp_path: Path) -> None:
    model = Net()
    found = sensitivity(model, batches(), metric=accuracy, levels=LEVELS)
    recipe = Recipe(
        granularity=Channel(), allocation=FromSensitivity(found, max_drop=0.1), schedule=OneShot(0.5, begin_step=2)
    )
    trainer(tmp_path, PruningCallback(recipe)).fit(model, loader())
    assert model.conv2.out_channels + model.conv3.out_channels == 8


def test_a_picture() -> None:
    pytest.importorskip("matplotlib")
    figure = curve(conv1=(1.0, 0.9, 0.5), conv2=(0.9, 0.8, 0.2)).plot()
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["conv1", "conv2"]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["25%", "50%", "75%"]
    assert axes.images[0].get_array().max() == pytest.approx(0.8)  # type: ignore[union-attr]


class TestBadInput:
    def refused(self, error: type[Exception], text: str, model: Any = None, data: Any = None, **options: Any) -> None:
        model = Net() if model is None else model
        given: Any = {"metric": accuracy} | options
        with untouched(model), pytest.raises(error, match=text):
            sensitivity(model, batches() if data is None else data, **given)

    @pytest.mark.parametrize("level", [0, 1, -0.5, 1.5, math.nan, True, "0.5"])
    def test_levels(self, level: Any) -> None:
        kind = TypeError if isinstance(level, bool | str) else ValueError
        self.refused(kind, "levels must be a number above 0 and below 1, got", levels=(level,))

    def test_more_levels(self) -> None:
        self.refused(TypeError, "levels must be several shares", levels=0.5)
        self.refused(ValueError, "levels is empty", levels=())
        self.refused(ValueError, "levels must rise", levels=(0.5, 0.2))
        self.refused(ValueError, "levels must rise", levels=(0.5, 0.5))

    def test_metrics(self) -> None:
        self.refused(ValueError, r"metric returned a tensor of shape \(4, 4\)", metric=lambda m, b: m(b[0]))
        self.refused(ValueError, "returned None; it must return a scalar", metric=lambda m, b: None)
        self.refused(TypeError, "metric must be a torchmetrics metric", metric="acc")
        self.refused(TypeError, "metric must be a torchmetrics metric", metric=MulticlassAccuracy)
        each = MulticlassAccuracy(4, average="none")
        self.refused(ValueError, r"MulticlassAccuracy returned a tensor of shape \(4,\)", metric=each)
        self.refused(NonFiniteError, "metric is nan with nothing pruned", metric=lambda m, b: math.nan)
        alone = [images for images, _ in batches()]
        self.refused(ValueError, r"needs batches \(inputs, targets\), the loader gave Tensor", data=alone, metric=each)

    def test_loaders(self) -> None:
        self.refused(ValueError, "the loader is empty", data=[])
        self.refused(PruningError, "ended early: it gave 0 batches in pass 2 where 3", data=iter(batches()))

    def test_layers(self) -> None:
        self.refused(ValueError, "layers names 'stem', which cannot be pruned; there are conv1, conv2", layers=["stem"])
        self.refused(ValueError, "layers is empty", layers=[])
        self.refused(TypeError, r"layers must be several names, got 'conv1'; pass \['conv1'\]", layers="conv1")
        self.refused(ValueError, "target pattern 'stem.*' matches no", targets=Targets(("stem*",)))
        self.refused(ValueError, "needs an example input of LinearNet", model=LinearNet())

    def test_others(self, tmp_path: Path) -> None:
        self.refused(TypeError, r"Taylor\(\) watches gradients.*criterion=significance\(", criterion=Taylor())
        self.refused(TypeError, "criterion must be a function", criterion="magnitude")
        self.refused(TypeError, r"granularity must be Element\(\)", granularity="channel")
        self.refused(ValueError, "is a folder; pass a file in it", path=tmp_path)
        (tmp_path / "junk.json").write_text("{")
        self.refused(ValueError, r"junk\.json cannot be gone on with", path=tmp_path / "junk.json")
        self.refused(ValueError, "there is no folder", path=tmp_path / "nowhere" / "curve.json")


def test_levels_of_numpy() -> None:
    found = sensitivity(Net(), batches(), metric=accuracy, levels=np.linspace(0.25, 0.75, 3), layers=["conv1"])
    assert found.levels == (0.25, 0.5, 0.75)


def test_a_table_of_significance_ranks() -> None:
    model = Net()
    table = significance(model, batches(), criteria=Taylor(), granularity=Channel())
    found = sensitivity(model, batches(), metric=accuracy, criterion=table, levels=(0.5,))
    assert found.criterion == "Significance"
