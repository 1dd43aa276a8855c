"""compact_every_event: the same training as with masks to the end, on a model that becomes smaller on the way."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from packages import ModelCheckpoint
from processes import on_ranks
from support import AfterStep, MixedNet, Net, Resumable, loader, outputs, trainer
from torch import Tensor

from lightning_prune import (
    Channel,
    Element,
    LeastSquares,
    Linear,
    PruningCallback,
    Recipe,
    RewindWeights,
    Targets,
    Taylor,
)
from lightning_prune.model import masks

RISE = Linear(final_sparsity=0.6, begin_step=2, end_step=8, frequency=2)
CONVOLUTIONS = Targets(("conv1", "conv2", "conv3"))
RECIPES: dict[str, Callable[[], Any]] = {
    "taylor": lambda: Recipe(granularity=Channel(), schedule=RISE, criterion=Taylor()),
    "macs": lambda: Recipe(granularity=Channel(), schedule=RISE, count="macs"),
    "rewind": lambda: Recipe(granularity=Channel(), schedule=RISE, optimizer_policy=RewindWeights(2)),
    "repair": lambda: Recipe(granularity=Channel(), schedule=RISE, repair=LeastSquares(samples=24)),
    "beside single weights": lambda: [
        Recipe(granularity=Channel(), schedule=RISE, targets=CONVOLUTIONS),
        Recipe(schedule=Linear(0.6, 3, 9, 2), targets=Targets(("head",)), criterion=Taylor()),
    ],
}


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.01)


def every_step(folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)


def fitted(folder: Path, recipe: Any, compact_every_event: bool, *callbacks: Any, **options: Any) -> Any:
    model = Net(make_optimizer=adamw)
    callback = PruningCallback(recipe, compact_every_event=compact_every_event)
    trainer(folder, callback, *callbacks, precision="64-true").fit(model, Resumable(), **options)
    return model, callback


@pytest.mark.parametrize("name", RECIPES)
def test_training_goes_on_as_with_masks(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    masked, carried = fitted(tmp_path, RECIPES[name](), False)
    torch.manual_seed(0)
    shrunk, removed = fitted(tmp_path, RECIPES[name](), True)
    assert len(removed.events) >= 3
    repaired = [[(r.name, r.damping) for r in e.repairs] for e in removed.events]
    assert repaired == [[(r.name, r.damping) for r in e.repairs] for e in carried.events]
    plain: dict[str, Any] = {"layers": None, "repairs": None}
    assert [vars(e) | plain for e in removed.events] == [vars(e) | plain for e in carried.events]
    assert [e.layers for e in removed.events] == [e.layers for e in carried.events]
    for (path, a), (_, b) in zip(masked.named_parameters(), shrunk.named_parameters(), strict=True):
        assert a.shape == b.shape
        assert torch.allclose(a, b, rtol=1e-8, atol=1e-11), path


def test_layers_shrink_on_the_way_and_carry_no_dead_channel(tmp_path: Path) -> None:
    widths = []

    def look(_: object, model: Net) -> None:
        widths.append((model.conv1.out_channels, model.conv2.out_channels))
        assert all(bool(mask.all()) for mask in masks.read(model).values())
        assert (
            model.conv2.weight.shape
            == masks.mask_of(model.conv2, "weight").shape
            == (widths[-1][1], widths[-1][0], 3, 3)
        )

    fitted(tmp_path, RECIPES["macs"](), True, AfterStep(look))
    assert widths[0] == (8, 8)
    assert len(set(widths)) == 4  # the events at 4, 6 and 8
    assert all(a >= b for before, after in itertools.pairwise(widths) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("name", RECIPES)
def test_a_run_stopped_half_way_shrunk_ends_as_one_never_stopped(name: str, tmp_path: Path) -> None:
    saving = every_step(tmp_path)
    whole, callback = fitted(tmp_path, RECIPES[name](), True, saving)
    for step in (1, 2, 5, 8, 9):
        torch.manual_seed(step)  # other weights to begin with
        again, resumed = fitted(
            tmp_path,
            RECIPES[name](),
            True,
            every_step(tmp_path / "again"),
            ckpt_path=tmp_path / f"step={step}.ckpt",
            weights_only=True,
        )
        assert resumed.events == callback.events
        for (path, a), b in zip(whole.state_dict().items(), again.state_dict().values(), strict=True):
            assert torch.equal(a, b), (step, path)


def test_going_back_to_an_earlier_checkpoint_with_the_same_model(tmp_path: Path) -> None:
    saving = every_step(tmp_path)
    model, callback = Net(make_optimizer=adamw), PruningCallback(RECIPES["macs"](), compact_every_event=True)
    trainer(tmp_path, callback, saving).fit(model, Resumable())
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for step in (5, 3):
        fit = trainer(tmp_path, callback, every_step(tmp_path / "again"))
        fit.fit(model, Resumable(), ckpt_path=tmp_path / f"step={step}.ckpt")
        assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def test_a_second_run_on_a_compact_model_resumes_too(tmp_path: Path) -> None:
    def second(model: Net, *callbacks: Any, **options: Any) -> Net:
        recipe = Recipe(granularity=Channel(), schedule=Linear(0.5, 2, 8, 2), criterion=Taylor())
        callback = PruningCallback(recipe, compact_every_event=True)
        trainer(tmp_path, callback, *callbacks).fit(model, Resumable(), **options)
        return model

    first, _ = fitted(tmp_path, RECIPES["taylor"](), True)
    saving = every_step(tmp_path)
    whole = second(first.float(), saving)
    for step in (1, 3, 7):
        rest = every_step(tmp_path / "again")
        again = second(Net(make_optimizer=adamw), rest, ckpt_path=tmp_path / f"step={step}.ckpt")
        for (path, a), b in zip(whole.state_dict().items(), again.state_dict().values(), strict=True):
            assert torch.equal(a, b), (step, path)


def test_half_way_shrunk_checkpoints_load_without_a_run(tmp_path: Path) -> None:
    at: dict[int, Tensor] = {}
    saving = every_step(tmp_path)
    note = AfterStep(lambda t, m: at.update({t.global_step: outputs(m)}))
    model = MixedNet()
    run = trainer(tmp_path, PruningCallback(RECIPES["macs"](), compact_every_event=True), note, saving)
    run.fit(model, loader())
    for step, expected in at.items():
        assert torch.equal(outputs(MixedNet.load_from_checkpoint(tmp_path / f"step={step}.ckpt")), expected)
    run.test(model, loader(), ckpt_path=tmp_path / "step=5.ckpt", verbose=False)
    assert torch.equal(outputs(model), at[5])


class Stubborn(Net):
    """Its code holds a width, which only a removal at another place than the trial's would show."""

    def forward(self, images: Tensor) -> Tensor:
        if 4 < self.conv1.out_channels < 8:
            raise RuntimeError("an unlucky width")
        return super().forward(images)


def test_what_cannot_go_stays_masked_and_training_goes_on(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Stubborn()
    recipe = Recipe(granularity=Channel(), schedule=Linear(0.5, 2, 8, 2), targets=Targets(("conv1", "conv3")))
    callback = PruningCallback(recipe, compact_every_event=True)
    with pytest.warns(
        UserWarning, match="these channel groups stay masked, because removing them is not exact:\nconv1: "
    ):
        trainer(tmp_path, callback).fit(model, loader())
    assert callback.events[-1].sparsity == 0.5
    assert model.conv1.out_channels == 4  # at the end the removal is tried once more


def test_compact_every_event_without_channels_is_refused(tmp_path: Path) -> None:
    callback = PruningCallback(Recipe(granularity=Element(), schedule=RISE), compact_every_event=True)
    with pytest.raises(ValueError, match="no recipe has granularity=Channel"):
        trainer(tmp_path, callback).fit(Net(), loader())


def ranks_fit(folder: str, compact_every_event: bool) -> Any:
    torch.manual_seed(0)
    model = Net(make_optimizer=adamw)
    callback = PruningCallback(RECIPES["taylor"](), compact_every_event=compact_every_event)
    fit = trainer(Path(folder), callback, strategy="ddp", devices=2, precision="64-true")
    fit.fit(model, loader(10))
    return [(e.step, e.sparsity) for e in callback.events], {n: p.numpy() for n, p in model.state_dict().items()}


def test_ddp_wraps_the_smaller_model_anew(tmp_path: Path) -> None:
    (events, weights), (other_events, others) = on_ranks(ranks_fit, 2, str(tmp_path), True)
    assert events == other_events
    assert len(events) == 3
    same = ("weight", "bias")
    assert all((weights[name] == others[name]).all() for name in weights if name.endswith(same))
    (carried, masked), _ = on_ranks(ranks_fit, 2, str(tmp_path), False)
    assert carried == events
    for name, expected in masked.items():
        assert expected.shape == weights[name].shape
        assert abs(expected - weights[name]).max() < 1e-9, name
