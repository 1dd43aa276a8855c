"""The example is what the first forward pass of a fit took, where the model brings none."""

import copy
import dataclasses
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from packages import L, ModelCheckpoint
from support import Resumable, loader, trainer
from torch import Tensor, nn

from lightning_prune import Channel, Linear, OneShot, PruningCallback, PruningError, Recipe
from lightning_prune.checkpoints import state as checkpoints
from lightning_prune.model.example import example_of, stored
from lightning_prune.model.summary import summarize


@dataclasses.dataclass
class Batch:
    """A batch of somebody's own class."""

    x: Tensor
    length: Tensor
    name: str = "a"


class Pair(NamedTuple):
    """A named tuple as a batch."""

    x: Tensor
    y: Tensor


class Net(L.LightningModule):
    """Takes its input in many forms."""

    def __init__(self, form: str = "self") -> None:
        super().__init__()
        self.form = form
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))

    def forward(self, x: Any, *, scale: float = 1.0) -> Tensor:
        x = x["x"] if isinstance(x, dict) else getattr(x, "x", x)
        return self.net(x) * scale

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x = batch[0]
        calls = {
            "self": lambda: self(x),
            "forward": lambda: self.forward(x),
            "keywords": lambda: self(x=x, scale=2.0),
            "dict": lambda: self({"x": x, "time": x[:, :3]}),
            "dataclass": lambda: self(Batch(x, torch.full((len(x),), 3))),
            "named tuple": lambda: self(Pair(x, x)),
            "other shapes later": lambda: self(x[:1].repeat(5, 1, 1, 1)).mean() + self(x).mean(),
            "inside": lambda: self.net(x),
            "never": lambda: self.net[1](self.net[0](x)),
        }
        return calls[self.form]().square().mean()

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.training_step(batch, batch_idx)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)


def pruned(
    folder: Path, begin_step: int = 1, form: str = "self", with_example: bool = False, **options: Any
) -> tuple[Net, list[int]]:
    """Return a fitted model and the steps of its events."""
    torch.manual_seed(0)
    model = Net(form)
    if with_example:
        model.example_input_array = torch.zeros(2, 1, 6, 6)
    callback = PruningCallback(
        Recipe(granularity=Channel(), schedule=OneShot(0.5, begin_step=begin_step)), **options.pop("pruning", {})
    )
    others = options.pop("callbacks", [])
    trainer(folder, callback, *others, **options).fit(model, loader(), loader())
    return model, [event.step for event in callback.events]


@pytest.mark.parametrize("begin_step", [0, 1, 3])
@pytest.mark.parametrize("sanity", [0, 2])
def test_the_same_bits_as_with_an_example(tmp_path: Path, begin_step: int, sanity: int) -> None:
    without, steps = pruned(tmp_path, begin_step, num_sanity_val_steps=sanity)
    given, others = pruned(tmp_path, begin_step, with_example=True, num_sanity_val_steps=sanity)
    assert steps == others == [begin_step]
    assert without.net[1].out_features == 4
    for name, tensor in given.state_dict().items():
        assert torch.equal(without.state_dict()[name], tensor), name


@pytest.mark.parametrize(
    "form", ["forward", "keywords", "dict", "dataclass", "named tuple", "other shapes later", "inside"]
)
def test_forms_of_a_call(tmp_path: Path, form: str) -> None:
    model, _ = pruned(tmp_path, form=form)
    assert model.net[1].out_features == 4
    assert "forward" not in vars(model)
    example = example_of(model)
    assert example is not None
    assert (stored(model) is None) == (form in ("dataclass", "named tuple"))


def test_removal_at_each_event(tmp_path: Path) -> None:
    model, _ = pruned(tmp_path, pruning={"compact_every_event": True})
    assert model.net[1].out_features == 4


def test_a_forward_that_is_never_called_is_told(tmp_path: Path) -> None:
    with pytest.raises(PruningError, match=r"Net\.forward was not called in the first training step.*call self\(…\)"):
        pruned(tmp_path, form="never")


def test_a_copy_made_while_the_first_pass_is_waited_for_waits_for_nothing(tmp_path: Path) -> None:
    class Copying(L.Callback):
        def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            self.copy: Any = copy.deepcopy(pl_module)

    copying = Copying()
    model, steps = pruned(tmp_path, callbacks=[copying])
    x = torch.rand(3, 1, 6, 6)
    assert copying.copy(x).shape == (3, 4)
    assert copying.copy.net[1].out_features == 8
    assert steps == [1]
    assert model.net[1].out_features == 4


@pytest.mark.parametrize("shrinks", [False, True])
def test_a_resumed_run_has_the_example_of_its_checkpoint(tmp_path: Path, shrinks: bool) -> None:
    def fitted(ckpt_path: Path | None, *others: L.Callback, **options: Any) -> Net:
        torch.manual_seed(0)
        model = Net("keywords")
        recipe = Recipe(granularity=Channel(), schedule=Linear(0.75, begin_step=0, end_step=9, frequency=3))
        callback = PruningCallback(recipe, compact_every_event=shrinks)
        trainer(tmp_path, callback, *others, num_sanity_val_steps=0, **options).fit(
            model, Resumable(), ckpt_path=ckpt_path, weights_only=True
        )
        return model

    def saving(folder: str) -> ModelCheckpoint:
        return ModelCheckpoint(tmp_path / folder, filename="{step}", every_n_train_steps=5, save_top_k=-1)

    whole = fitted(None, saving("whole"), max_epochs=3)
    resumed = fitted(tmp_path / "whole" / "step=5.ckpt", saving("resumed"), max_epochs=3)
    assert whole.net[1].out_features == 2
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name


def macs_told(printed: str) -> list[str]:
    """What the events and the end say of MACs."""
    return re.findall(r"[\d,]+ MACs \(\d+%\)|^MACs .*", printed, re.MULTILINE)


@pytest.mark.parametrize("count", [None, "macs"])
def test_macs_are_those_of_one_sample(tmp_path: Path, count: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def fitted(model: Net) -> tuple[Net, list[int | None], list[str]]:
        recipe = Recipe(granularity=Channel(), schedule=Linear(0.5, 1, 7, 3), count=count)
        callback = PruningCallback(recipe)
        trainer(tmp_path, callback).fit(model, loader())
        return model, [event.macs for event in callback.events], macs_told(capsys.readouterr().out)

    torch.manual_seed(0)
    without, events, lines = fitted(Net())
    torch.manual_seed(0)
    own = Net()
    own.example_input_array = torch.zeros(1, 1, 6, 6)
    own, own_events, own_lines = fitted(own)
    assert (events, lines) == (own_events, own_lines)
    assert summarize(without).macs == summarize(own).macs == events[-1] == 36 * 4 + 4 * 4
    assert len(lines) == len(events) + 1


def test_a_run_from_before_macs_were_of_one_sample_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fitted(folder: str, **options: Any) -> tuple[Net, PruningCallback]:
        torch.manual_seed(0)
        model = Net()
        recipe = Recipe(granularity=Channel(), schedule=Linear(0.75, 0, 9, 3), count="macs")
        callback = PruningCallback(recipe)
        saving = ModelCheckpoint(tmp_path / folder, filename="{step}", every_n_train_steps=5, save_top_k=-1)
        trainer(tmp_path, callback, saving, max_epochs=3).fit(model, Resumable(), **options)
        return model, callback

    whole, callback = fitted("whole")
    told = macs_told(capsys.readouterr().out)
    path = tmp_path / "whole" / "step=5.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    entry = checkpoint[checkpoints.KEY]
    del entry["example"]["is_learnt"], entry["run"]["events"]
    entry["run"]["dense"]["macs"] *= 2
    torch.save(checkpoint, path)
    resumed, later = fitted("resumed", ckpt_path=path, weights_only=True)
    assert macs_told(capsys.readouterr().out) == told[-len(later.events) - 1 :]
    assert later.events == [event for event in callback.events if event.step > 5]
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name
