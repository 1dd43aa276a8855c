"""What prune refuses, and that whatever is raised leaves the model as it was."""

import copy
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from trained_cases import HALF, batches, redundant

from lightning_prune import (
    Channel,
    Element,
    Fisher,
    Linear,
    OneShot,
    PruningError,
    Recipe,
    Taylor,
    prune,
)
from lightning_prune.errors import NonFiniteError


def broken(_: Any) -> Iterator[Any]:
    yield torch.randn(32, 8)
    raise KeyboardInterrupt


def nan() -> nn.Module:
    net = redundant()
    net.insert(0, nn.Threshold(1e9, float("nan")))
    return net


@pytest.mark.parametrize(
    ("make", "data", "options", "error", "message"),
    [
        (redundant, [], {}, ValueError, "the loader is empty"),
        (redundant, torch.zeros(4, 8), {}, TypeError, r"pass \[tensor\]"),
        (redundant, [{"y": torch.zeros(2)}], {}, TypeError, r"forward of Sequential takes input"),
        (redundant, [torch.randn(8, 8)], {}, ValueError, "8 samples are too few for repair"),
        (redundant, [torch.randn(32, 5)], {}, Exception, "example input"),
        (redundant, [torch.randn(32, 8)], {"metric": 3}, TypeError, "metric must be"),
        (nan, [torch.randn(32, 8)], {}, NonFiniteError, "enters 3.weight is NaN or infinite; nothing was pruned"),
        (redundant, [torch.randn(32, 8)], {"loss": lambda m, b: m(b)}, ValueError, "must return a scalar"),
        (redundant, [torch.randn(32, 8)], {"samples": 0}, ValueError, "samples must be at least 1"),
    ],
)
def test_bad_input_changes_nothing(
    make: Callable[[], nn.Module], data: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    net = make()
    before = copy.deepcopy(net.state_dict())
    recipe = Recipe(granularity=Channel(), schedule=OneShot(0.5), criterion=Fisher()) if "loss" in options else HALF
    with pytest.raises(error, match=message):
        prune(net, recipe, data, progress=False, **options)
    assert net.training
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name])


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(16), nn.ReLU(), nn.Linear(16, 4))


def with_nan() -> nn.Module:
    net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 4))
    nn.init.constant_(dict(net.named_parameters())["1.weight"], float("nan"))
    return net


MIXED = Linear(0.5, begin_step=200, end_step=0.8)


@pytest.mark.parametrize(
    ("model", "recipe", "options", "error", "message"),
    [
        (nn.Linear, HALF, {}, TypeError, "model must be an nn.Module, got <class"),
        (None, HALF, {}, TypeError, "model must be an nn.Module, got None"),
        (redundant(), OneShot(0.5), {}, TypeError, r"recipe must be one Recipe\(schedule=…\), .* got OneShot"),
        (redundant(), [HALF, HALF], {}, TypeError, "of several call prune for each in turn"),
        (redundant(), HALF, {"loss": nn.CrossEntropyLoss()}, TypeError, r"CrossEntropyLoss\(\) takes outputs and"),
        (lazy(), HALF, {}, ValueError, "0.weight of Sequential has no shape yet: run it on a batch"),
        (redundant().to("meta"), HALF, {}, ValueError, "0.weight of Sequential is on the meta device: bring"),
        (with_nan(), HALF, {}, NonFiniteError, "1.weight holds NaN itself"),
        (redundant(), replace(HALF, schedule=MIXED), {}, ValueError, "a share of it counts as one of 100 steps"),
        (redundant(), replace(HALF, schedule=lambda step: 0.5), {}, ValueError, "does not tell when it ends"),
    ],
)
def test_arguments_of_another_kind_are_named(
    model: Any, recipe: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        prune(model, recipe, [torch.randn(32, 8)], progress=False, **options)


def test_single_samples_in_place_of_batches_are_named() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    with pytest.raises(ValueError, match=r"rejects the example input .* DataLoader\(samples, batch_size=32\)"):
        prune(net, HALF, [torch.rand(3, 8, 8) for _ in range(64)], progress=False)


class Narrow(nn.Module):
    """Has no room for many samples at once."""

    def __init__(self) -> None:
        super().__init__()
        self.net = redundant()

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 40:
            raise MemoryError("too many")
        return self.net(x)


@pytest.mark.parametrize(
    ("model", "dtype", "message"),
    [
        (redundant(), torch.float64, r"128 samples .* are torch.float64 and the weights torch.float32: cast one"),
        (Narrow(), torch.float32, r"the 128 samples that repair and criteria look at \(MemoryError.* look at fewer"),
    ],
)
def test_why_the_samples_cannot_be_looked_at(model: nn.Module, dtype: torch.dtype, message: str) -> None:
    with pytest.raises(PruningError, match=message):
        prune(model, HALF, [x.to(dtype) for x, _ in batches()], progress=False)


def test_an_interrupt_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    net = redundant()
    before = copy.deepcopy(net.state_dict())

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["lightning_prune.trained.prune"], "finalize", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prune(net, Recipe(granularity=Element(), schedule=OneShot(0.5)), batches(), progress=False)
    assert list(net.state_dict()) == list(before)
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name])


class Cached(nn.Module):
    """Keeps a tensor beside its buffers, and has a hook of its user's."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
        self.cache: dict[str, Tensor] = {}
        self.net.register_forward_hook(lambda *_: None)

    def forward(self, x: Tensor) -> Tensor:
        if "scale" not in self.cache:
            self.cache["scale"] = torch.tensor(2.0)
        return self.net(x) * self.cache["scale"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_what_is_raised_after_the_removal_changes_nothing_either(error: type[BaseException]) -> None:
    model = Cached()
    next(model.buffers()).fill_(0.5)
    data = [torch.rand(32, 3, 8, 8)]
    model(data[0]).sum().backward()
    before = copy.deepcopy(model)
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    own = {path: set(vars(module)) for path, module in model.named_modules()}
    passes: list[int] = []

    def metric(copied: nn.Module, batch: Tensor) -> float:
        copied(batch)
        passes.append(len(next(copied.parameters())))
        if len(passes) == 2:
            raise error
        return 1.0

    with pytest.raises(error):
        prune(model, HALF, data, metric=metric, progress=False)
    assert passes == [8, 4]
    assert {path: set(vars(module)) for path, module in model.named_modules()} == own
    assert str(model) == str(before)
    assert all(torch.equal(now, then) for now, then in zip(model.parameters(), before.parameters(), strict=True))
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=0, atol=0)
    assert all(torch.equal(now, then) for now, then in zip(model.buffers(), before.buffers(), strict=True))
    assert torch.equal(model.eval()(data[0]), before.eval()(data[0]))
    model.train()(data[0]).sum().backward()
    assert prune(model, HALF, data, progress=False).before.parameters == sum(p.numel() for p in before.parameters())


def test_masks_of_another_run_are_refused() -> None:
    from lightning_prune.model import masks

    net = redundant()
    masks.attach(net, ["0.weight"])
    with pytest.raises(PruningError, match="carries masks of another run"):
        prune(net, HALF, batches(), progress=False)


def test_a_loss_that_tells_no_gradient_is_named() -> None:
    net = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3))
    recipe = Recipe(granularity=Channel(), schedule=OneShot(0.5), criterion=Taylor())
    with pytest.raises(ValueError, match="does not depend on any weight"):
        prune(net, recipe, [torch.randn(64, 6)], loss=lambda model, batch: model(batch).detach().sum(), progress=False)
