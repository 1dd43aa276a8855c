"""Quantization-aware epochs: masks stay, resuming is exact, and the model is in float again at the end."""

import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from packages import Callback, DDPStrategy, L
from processes import on_ranks
from support import AfterStep, Net, Resumable, loader, trainer

from lightning_prune import Channel, Linear, PruningCallback, Recipe
from lightning_prune.errors import CheckpointError
from lightning_prune.model import masks
from lightning_prune.trainer.fake_quantization import FakeQuantization
from lightning_prune.trainer.quantization_aware import QuantizationAware

RISE = Recipe(schedule=Linear(final_sparsity=0.6, begin_step=1, end_step=6, frequency=2))


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def hooks(model: torch.nn.Module) -> int:
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())


def weights(model: torch.nn.Module) -> dict[str, bytes]:
    return {name: value.detach().numpy().tobytes() for name, value in model.state_dict().items()}


def fit(folder: Path, model: Net, *callbacks: Callback, **options: Any) -> Net:
    ckpt = options.pop("ckpt_path", None)
    data = options.pop("data", None) or loader()
    trainer(folder, *callbacks, **({"max_epochs": 3} | options)).fit(model, data, ckpt_path=ckpt, weights_only=True)
    return model


@pytest.mark.parametrize("is_first", [True, False])
def test_masked_weights_stay_zero_and_the_model_ends_in_float(tmp_path: Path, is_first: bool) -> None:
    steps: list[tuple[int, bool]] = []

    def look(run: L.Trainer, model: Any) -> None:
        for parameter, mask in masks.masks_by_parameter(model).items():
            assert bool((parameter[~mask] == 0).all())
        rounding = [getattr(hook, "__self__", None) for hook in model.conv2._forward_hooks.values()]
        steps.append((run.global_step, any(isinstance(one, FakeQuantization) for one in rounding)))

    pruning, aware = PruningCallback(RISE), QuantizationAware(begin_epoch=1)
    model = net()
    both = (aware, pruning) if is_first else (pruning, aware)
    fit(tmp_path, model, *both, AfterStep(look))
    assert steps == [(step, step > 5) for step in range(1, 16)]
    assert hooks(model) == 0
    zeros = sum(int((m.weight == 0).sum()) for m in model.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear))
    assert zeros >= round(0.6 * 1256)


def test_the_order_of_the_callbacks_does_not_matter(tmp_path: Path) -> None:
    ends = []
    for reverse in (False, True):
        callbacks = [PruningCallback(RISE), QuantizationAware(begin_epoch=1)]
        ends.append(weights(fit(tmp_path, net(), *callbacks[:: -1 if reverse else 1])))
    assert ends[0] == ends[1]
    assert ends[0] != weights(fit(tmp_path, net(), PruningCallback(RISE)))


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("at_every_event", [True, False])
def test_channels_are_removed_as_without_it(tmp_path: Path, is_first: bool, at_every_event: bool) -> None:
    recipe = Recipe(schedule=Linear(0.5, 1, 6, 2), granularity=Channel())
    both = [QuantizationAware(begin_epoch=-3), PruningCallback(recipe, compact_every_event=at_every_event)]
    model = fit(tmp_path, net(), *both[:: 1 if is_first else -1])
    assert model.conv1.out_channels + model.conv2.out_channels == 8
    assert hooks(model) == 0
    assert torch.isfinite(model(torch.zeros(2, 1, 6, 6))).all()


def test_parameters_and_names_are_the_models_own(tmp_path: Path) -> None:
    model = net()
    own, names = [id(p) for p in model.parameters()], list(model.state_dict())
    fit(tmp_path, model, QuantizationAware(begin_epoch=0))
    assert [id(p) for p in model.parameters()] == own
    assert list(model.state_dict()) == names


@pytest.mark.parametrize("step", [4, 7, 10, 12])
def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path, step: int) -> None:
    def parts() -> tuple[Callback, ...]:
        return PruningCallback(RISE), QuantizationAware(begin_epoch=1, skip=("conv1",))

    path = tmp_path / "middle.ckpt"
    keep = AfterStep(lambda run, _: run.global_step == step and run.save_checkpoint(path))
    whole = weights(fit(tmp_path, net(), *parts(), keep, data=Resumable()))
    assert weights(fit(tmp_path, net(), *parts(), ckpt_path=path, data=Resumable())) == whole


def test_an_error_leaves_the_model_in_float(tmp_path: Path) -> None:
    def fail(run: L.Trainer, model: object) -> None:
        if run.global_step == 2:
            raise ArithmeticError

    model = net()
    with pytest.raises(ArithmeticError):
        fit(tmp_path, model, QuantizationAware(begin_epoch=0), AfterStep(fail))
    assert hooks(model) == 0


@pytest.mark.parametrize(
    ("begin_epoch", "options", "told"),
    [
        (3, {}, "choose from -3 to 2"),
        (-4, {}, "choose from -3 to 2"),
        (-1, {"max_epochs": -1, "max_steps": 2}, "max_epochs"),
    ],
)
def test_an_epoch_that_never_comes_is_refused(tmp_path: Path, begin_epoch: int, options: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        fit(tmp_path, net(), QuantizationAware(begin_epoch), **options)


def test_bad_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="begin_epoch must be an int"):
        QuantizationAware(0.5)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="sequence of name patterns"):
        QuantizationAware(skip="head")
    with pytest.raises(ValueError, match="no Linear or convolution"):
        fit(tmp_path, net(), QuantizationAware(skip=("*",)))
    with pytest.raises(CheckpointError):
        QuantizationAware().load_state_dict({})


def fit_of_a_rank(folder: str) -> tuple[dict[str, bytes], dict[str, list[float]]]:
    aware = QuantizationAware(begin_epoch=1)
    ranges: list[dict[str, list[float]]] = []
    note = AfterStep(lambda *_: ranges.append({p: r.tolist() for p, r in aware.state_dict()["ranges"].items()}))
    strategy = DDPStrategy(process_group_backend="gloo", timeout=timedelta(seconds=60))
    parts = (PruningCallback(RISE), aware, note)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = fit(Path(folder), net(), *parts, data=loader(10), strategy=strategy, devices=2)
    return {name: value.detach().numpy().tobytes() for name, value in model.named_parameters()}, ranges[-1]


@pytest.mark.slow
def test_ranks_end_with_the_same_weights_and_ranges(tmp_path: Path) -> None:
    (weights_0, ranges_0), (weights_1, ranges_1) = on_ranks(fit_of_a_rank, 2, str(tmp_path))
    assert weights_0 == weights_1
    assert ranges_0 == ranges_1
    assert len(ranges_0) == 4
