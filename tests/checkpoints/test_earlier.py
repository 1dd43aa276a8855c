"""What reads or restores the model's state during a fit, or after it, as projects do it themselves."""

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from support import Net, loader, trainer
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lightning_prune import Channel, Linear, PruningCallback, Recipe
from lightning_prune.checkpoints import earlier
from lightning_prune.compaction import applied_plan
from lightning_prune.model import masks

RISE = Linear(final_sparsity=0.6, begin_step=2, end_step=8, frequency=3)
WAYS: dict[str, Callable[[], PruningCallback]] = {
    "element": lambda: PruningCallback(Recipe(schedule=RISE)),
    "channel": lambda: PruningCallback(Recipe(schedule=RISE, granularity=Channel())),
    "every event": lambda: PruningCallback(Recipe(schedule=RISE, granularity=Channel()), compact_every_event=True),
}
TOLD = pytest.mark.filterwarnings("ignore:a state was loaded with weights that are pruned by now")


def masked_by(state: dict[str, Tensor], like: nn.Module) -> dict[str, Tensor]:
    """A state as the finished model has to hold it: of its shapes, with its zeros."""
    plan = applied_plan(like)
    expected = {}
    for name, tensor in state.items():
        for axis, kept in (plan.keep.get(name, {}) if plan else {}).items():
            tensor = tensor.index_select(axis, torch.tensor(kept))
        expected[name] = tensor
    return expected


class Keeping(Callback):
    """Keeps the state after each step as a project keeps that of its best epoch; loads one where it is told to."""

    def __init__(self, step: int, hook: str = "") -> None:
        self.step, self.hook, self.kept = step, hook, {}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.kept[0] = copy.deepcopy(pl_module.state_dict())

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any, **__: Any) -> None:
        self.kept[trainer.global_step] = copy.deepcopy(pl_module.state_dict())

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        if self.hook == "on_train_end":
            pl_module.load_state_dict(self.kept[self.step])

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        if self.hook == "on_fit_end":
            pl_module.load_state_dict(self.kept[self.step])


@TOLD
@pytest.mark.parametrize("hook", ["on_train_end", "on_fit_end", "afterwards"])
@pytest.mark.parametrize(("step", "first"), [(0, False), (6, True)])
@pytest.mark.parametrize("way", WAYS)
def test_a_state_that_was_kept_is_restored_as_far_as_it_is_left(
    way: str, step: int, hook: str, first: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    final: dict[str, Tensor] = {}

    class Last(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            self.dense = {n: tuple(p.shape) for n, p in pl_module.named_parameters()}

        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any, **__: Any) -> None:
            final.update({name: mask.clone() for name, mask in masks.read(pl_module).items()})

    keeping, callback, model = Keeping(step, hook), WAYS[way](), Net(width=6)
    callbacks = [keeping, callback] if first else [callback, keeping]
    trainer(tmp_path, *callbacks, Last()).fit(model, loader())
    if hook == "afterwards":
        model.load_state_dict(keeping.kept[step])
    assert not masks.is_masked(model)
    state = model.state_dict()
    if way == "element":
        for name, tensor in keeping.kept[step].items():
            assert torch.equal(state[name], tensor * final[name] if name in final else tensor), name
        assert sum(int((state[name] == 0).sum()) for name in final) >= 0.6 * sum(m.numel() for m in final.values()) - 1
    else:
        plan = applied_plan(model)
        assert plan is not None
        dense = all(tuple(t.shape) == plan.shapes.get(n, tuple(t.shape)) for n, t in keeping.kept[step].items())
        assert dense or way == "every event"
        if dense:
            for name, tensor in masked_by(keeping.kept[step], model).items():
                assert torch.equal(state[name], tensor), name
        assert model.conv1.out_channels + model.conv2.out_channels < 12
    model(torch.zeros(2, 1, 6, 6))


@TOLD
def test_a_state_of_a_stage_in_between_is_cut_by_what_left_since(tmp_path: Path) -> None:
    """The state of step 6 lies between two removals; what it computes with what is left is known by hand."""
    torch.manual_seed(0)
    keeping, model = Keeping(6), Net(width=8)
    trainer(tmp_path, WAYS["every event"](), keeping).fit(model, loader())
    shapes = {step: tuple(state["conv2.weight"].shape) for step, state in keeping.kept.items()}
    assert len({shapes[0], shapes[6], shapes[10]}) == 3
    twin = copy.deepcopy(model)
    model.load_state_dict(keeping.kept[0])
    for name, tensor in masked_by(keeping.kept[0], model).items():
        assert torch.equal(model.state_dict()[name], tensor)
    twin.load_state_dict(keeping.kept[6])  # the copy has the hooks too
    rows = [(keeping.kept[6]["conv2.bias"] == value).nonzero().item() for value in twin.get_parameter("conv2.bias")]
    assert rows == sorted(rows)
    columns = [(keeping.kept[6]["norm1.weight"] == value).nonzero()[0].item() for value in twin.norm1.weight]
    assert len(columns) == twin.conv1.out_channels
    torch.testing.assert_close(twin.conv2.weight, keeping.kept[6]["conv2.weight"][rows][:, columns])


def test_it_is_said_once_and_not_where_nothing_is_lost(tmp_path: Path) -> None:
    keeping, model = Keeping(10), Net()
    trainer(tmp_path, WAYS["element"](), keeping).fit(model, loader())
    model.load_state_dict(keeping.kept[10])  # warnings are errors
    model.load_state_dict(model.state_dict())
    with pytest.warns(UserWarning, match=r"weights that are pruned by now, Conv2d.weight among them: they stay zero"):
        model.load_state_dict(keeping.kept[0])
    model.load_state_dict(keeping.kept[0])


@TOLD
def test_a_submodule_loads_a_part_and_copies_and_pickles_go_on(tmp_path: Path) -> None:
    keeping, model = Keeping(0), Net()
    trainer(tmp_path, WAYS["channel"](), keeping).fit(model, loader())
    expected = masked_by(keeping.kept[0], model)["conv2.weight"]
    part = {name.removeprefix("conv2."): t for name, t in keeping.kept[0].items() if name.startswith("conv2.")}
    model.trainer = None
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for one in (model, copy.deepcopy(model), torch.load(buffer, weights_only=False)):
        one.conv2.load_state_dict(part)
        assert torch.equal(one.conv2.weight, expected)


def test_a_checkpoint_of_the_fit_brings_the_masks_back_and_the_dense_shape(tmp_path: Path) -> None:
    """What the Trainer restores is authoritative: nothing is cut."""
    model, run = Net(), trainer(tmp_path, max_epochs=1)
    run.fit(Net(), loader())
    run.save_checkpoint(tmp_path / "dense.ckpt")
    pruned = trainer(tmp_path, WAYS["channel"]())
    pruned.fit(model, loader())
    assert model.conv1.out_channels < 8
    pruned.test(model, loader(), ckpt_path=tmp_path / "dense.ckpt", verbose=False, weights_only=True)
    assert model.conv1.out_channels == 8
    state = torch.load(tmp_path / "dense.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert not any(
        isinstance(getattr(h, "hook", h), earlier.Earlier)
        for m in model.modules()
        for h in m._load_state_dict_pre_hooks.values()
    )


class Ema(Callback):
    """An average by name, as projects write it; copies it into the model when the training ends."""

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self.shadow = {name: p.detach().clone() for name, p in pl_module.named_parameters()}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any, **__: Any) -> None:
        for name, parameter in pl_module.named_parameters():
            self.shadow[name].lerp_(parameter.detach(), 0.1)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        for name, parameter in pl_module.named_parameters():
            parameter.data.copy_(self.shadow[name])


class Ordered(Ema):
    """The same by order."""

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self.shadow = [p.detach().clone() for p in pl_module.parameters()]  # type: ignore[assignment]

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any, **__: Any) -> None:
        for mine, parameter in zip(self.shadow, pl_module.parameters(), strict=True):
            mine.lerp_(parameter.detach(), 0.1)  # type: ignore[attr-defined]

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        for mine, parameter in zip(self.shadow, pl_module.parameters(), strict=True):
            parameter.data.copy_(mine)  # type: ignore[arg-type]


class Averaged(Ordered):
    """torch's own."""

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self.average = AveragedModel(pl_module, multi_avg_fn=get_ema_multi_avg_fn(0.9))
        self.average.n_averaged += 1

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any, **__: Any) -> None:
        self.average.update_parameters(pl_module)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.shadow = list(self.average.module.parameters())  # type: ignore[assignment]
        super().on_train_end(trainer, pl_module)


class Beforehand(Averaged):
    """The same, made with the model."""

    def __init__(self, model: nn.Module) -> None:
        super().on_fit_start(None, model)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        pass


CASES = [(Ema, way) for way in WAYS] + [
    (k, w) for k in (Ordered, Averaged, Beforehand) for w in ("element", "every event")
]


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize(("kind", "way"), CASES)
def test_an_average_ends_as_one_made_by_hand(kind: Any, way: str, first: bool, tmp_path: Path) -> None:
    """By hand: averages of the weights as they stand where the callback stands, pruned by the masks of the end."""

    def fitted(model: Net, average: Callback, callback: PruningCallback) -> Net:
        callbacks = [average, callback] if first else [callback, average]
        trainer(tmp_path, *callbacks).fit(model, loader())
        assert not masks.is_masked(model)
        return model

    torch.manual_seed(0)
    keeping = Keeping(10)
    plain = fitted(Net(), keeping, WAYS["channel" if way == "every event" else way]())
    torch.manual_seed(0)
    model = Net()
    fitted(model, kind(model) if kind is Beforehand else kind(), WAYS[way]())
    expected = {name: tensor.clone() for name, tensor in keeping.kept[0].items()}
    for step in range(1, 11):
        for name, _ in Net().named_parameters():
            expected[name].lerp_(keeping.kept[step][name], 0.1)
    cut = masked_by(expected, model)
    for name, parameter in model.named_parameters():
        wanted = torch.where(plain.state_dict()[name] == 0, 0, cut[name]) if way == "element" else cut[name]
        torch.testing.assert_close(parameter.data, wanted, atol=1e-5, rtol=1e-4)
