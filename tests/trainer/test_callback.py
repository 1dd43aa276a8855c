import csv
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from packages import (
    BatchSizeFinder,
    Callback,
    CSVLogger,
    L,
    LearningRateFinder,
    ModelCheckpoint,
    TQDMProgressBar,
)
from support import AfterStep, LinearNet, Net, loader, trainer, zeros
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, IterableDataset

from lightning_prune import (
    Block,
    Channel,
    Element,
    Global,
    Linear,
    NOfM,
    OneShot,
    PruningCallback,
    Recipe,
    Targets,
    Taylor,
)
from lightning_prune.checkpoints import earlier
from lightning_prune.model import masks
from lightning_prune.trainer._preconditions import is_left_out

STEPS = Linear(final_sparsity=0.6, begin_step=2, end_step=9, frequency=3)


class Record(Callback):
    """Remembers, after each batch, how many positions are pruned."""

    def __init__(self) -> None:
        self.zeros: list[int] = []

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        self.zeros.append(zeros(pl_module))


def is_plain(model: nn.Module) -> bool:
    hooks = [h for m in model.modules() for h in (*m._forward_pre_hooks, *m._forward_hooks)]
    loading = [getattr(h, "hook", h) for m in model.modules() for h in m._load_state_dict_pre_hooks.values()]
    hooks += [h for h in loading if not isinstance(h, earlier.Earlier)]
    names = [*dict(model.named_parameters()), *dict(model.named_buffers()).keys() - {"attn_mask"}]
    return not hooks and not masks.is_masked(model) and not [n for n in names if n.endswith(("_orig", "_mask"))]


@pytest.mark.parametrize(
    ("granularity", "sparsity", "pruned"),
    [(Element(), 0.6, 154), (NOfM(2, 4), 0.5, 128), (Block((4, 1)), 0.5, 128)],
)
def test_plain_module_needs_no_mixin(tmp_path: Path, granularity: Any, sparsity: float, pruned: int) -> None:
    record = Record()
    recipe = Recipe(granularity=granularity, schedule=Linear(sparsity, 2, 9, 3))
    model = LinearNet()
    trainer(tmp_path, PruningCallback(recipe), record).fit(model, loader())
    # 192 + 64 weights: all in full units of each granularity
    assert record.zeros[-1] == pruned == round(sparsity * 256)
    assert sum(int((p == 0).sum()) for p in (model.first.weight, model.second.weight)) == pruned
    assert is_plain(model)


def test_channels_of_a_plain_module(tmp_path: Path) -> None:
    model = Net()
    run = trainer(tmp_path, PruningCallback(Recipe(granularity=Channel(), schedule=STEPS)))
    run.fit(model, loader())
    assert is_plain(model)
    assert model.conv1.out_channels + model.conv2.out_channels == 16 - round(0.6 * 16)
    assert [type(m) for m in model.modules()] == [type(m) for m in Net().modules()]
    assert list(dict(model.named_parameters())) == list(dict(Net().named_parameters()))
    (optimizer,) = run.optimizers
    assert {p: p.shape for p in model.parameters()} == {
        p: s["momentum_buffer"].shape for p, s in optimizer.state.items()
    }


def test_training_goes_on_after_finalize_with_the_same_optimizer(tmp_path: Path) -> None:
    model = Net(make_optimizer=torch.optim.AdamW)
    run = trainer(tmp_path, PruningCallback(Recipe(granularity=Channel(), schedule=STEPS)))
    run.fit(model, loader())
    (optimizer,) = run.optimizers
    before = [p.detach().clone() for p in model.parameters()]
    for images, labels in loader():
        optimizer.zero_grad()
        cross_entropy(model(images), labels).backward()
        optimizer.step()
    assert all(not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    assert all(state["step"] == 15 for state in optimizer.state.values())


def test_events_fall_where_the_schedule_says(tmp_path: Path) -> None:
    record, callback = Record(), PruningCallback(Recipe(schedule=STEPS))
    trainer(tmp_path, callback, record).fit(LinearNet(), loader())
    # the event at begin_step = 2 asks for 0; then 5, 8, and end_step = 9, not 11
    assert [event.step for event in callback.events] == [5, 8, 9]
    steps = [n for n, (a, b) in enumerate(zip([0, *record.zeros], record.zeros, strict=False), 1) if a != b]
    assert steps == [5, 8, 9]
    assert record.zeros[-1] == round(0.6 * 256)
    assert callback.sparsity == callback.events[-1].sparsity == record.zeros[-1] / 256


def test_events_count_optimizer_steps_not_batches(tmp_path: Path) -> None:
    record, callback = Record(), PruningCallback(Recipe(schedule=Linear(0.6, 0, 4, 2)))
    trainer(tmp_path, callback, record, accumulate_grad_batches=3).fit(LinearNet(), loader(batches=6))
    assert [event.step for event in callback.events] == [2, 4]
    assert [n > 0 for n in record.zeros] == [False] * 5 + [True] * 7
    assert record.zeros[-1] == round(0.6 * 256) > record.zeros[-2]


class TwoOptimizers(LinearNet):
    """Steps the second optimizer, which holds no target, three times a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:  # type: ignore[override]
        for optimizer in (self.optimizers()[0], *[self.optimizers()[1]] * 3):  # type: ignore[index]
            optimizer.zero_grad()
            self.manual_backward(cross_entropy(self(batch[0]), batch[1]))
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.Adam(self.first.parameters()), torch.optim.Adam(self.second.parameters())]


@pytest.mark.parametrize(("targets", "batch"), [(("first",), 8), (("*",), 2)])
def test_events_count_the_steps_of_optimizers_with_a_target(tmp_path: Path, targets: tuple[str], batch: int) -> None:
    record = Record()
    recipe = Recipe(schedule=OneShot(0.5, begin_step=8), targets=Targets(include=targets), criterion=Taylor())
    trainer(tmp_path, PruningCallback(recipe), record).fit(TwoOptimizers(), loader())
    assert [n > 0 for n in record.zeros] == [False] * (batch - 1) + [True] * (11 - batch)


def test_event_precedes_the_checkpoint_of_its_batch(tmp_path: Path) -> None:
    saving = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    callback = PruningCallback(Recipe(schedule=OneShot(0.5, begin_step=4)))
    trainer(tmp_path, saving, callback).fit(LinearNet(), loader())
    for step in (3, 4, 5):
        state = torch.load(tmp_path / f"step={step}.ckpt", weights_only=True)["state_dict"]
        pruned = sum(int((state[f"{layer}.weight"] == 0).sum()) for layer in ("first", "second"))
        assert pruned == (128 if step >= 4 else 0)


def test_sparsity_is_a_callback_metric_on_the_progress_bar(tmp_path: Path) -> None:
    shown = []
    look = AfterStep(
        lambda run, _: shown.append((run.progress_bar_metrics["sparsity"], run.callback_metrics["sparsity"]))
    )
    trainer(tmp_path, PruningCallback(Recipe(schedule=STEPS)), look).fit(LinearNet(), loader())
    assert len(shown) == 10
    assert shown[0] == (0, 0)
    assert shown[-1] == (pytest.approx(0.6, abs=1e-2),) * 2


def test_progress_bar_shows_the_sparsity(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"enable_progress_bar": True, "max_epochs": 1}
    recipe = Recipe(schedule=OneShot(0.5, begin_step=2))
    trainer(tmp_path, PruningCallback(recipe), TQDMProgressBar(), **options).fit(LinearNet(), loader())
    assert "sparsity=0.500" in capsys.readouterr().out


@pytest.mark.parametrize(("granularity", "has_macs"), [(Element(), True), (Channel(), True)])
def test_event_values_reach_the_logger_at_their_step(tmp_path: Path, granularity: Any, has_macs: bool) -> None:
    model, callback = Net(), PruningCallback(Recipe(granularity=granularity, schedule=STEPS))
    run = trainer(tmp_path, callback, logger=CSVLogger(tmp_path), log_every_n_steps=50)
    run.fit(model, loader())
    with (Path(run.logger.log_dir) / "metrics.csv").open() as file:  # type: ignore[union-attr,arg-type]
        rows = [row for row in csv.DictReader(file) if row["sparsity"]]
    assert [int(row["step"]) for row in rows] == [5, 8, 9]
    for row, event in zip(rows, callback.events, strict=True):
        assert float(row["sparsity"]) == pytest.approx(event.sparsity)
        assert float(row["params"]) == event.params
        assert float(row["macs"]) == event.macs
        assert float(row["sparsity/conv2"]) == pytest.approx(event.layers["conv2.weight"])
    if granularity == Channel():
        assert callback.events[-1].params == sum(p.numel() for p in model.parameters())


def test_one_line_per_event(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="lightning_prune"):
        trainer(tmp_path, PruningCallback(Recipe(schedule=STEPS), verbose=False)).fit(LinearNet(), loader())
    lines = [
        r.getMessage() for r in caplog.records if r.name.startswith("lightning_prune") and r.levelno == logging.INFO
    ]
    assert [line.partition(":")[0] for line in lines] == ["step 5", "step 8", "step 9", "after 10 steps"]
    assert lines[-2].startswith("step 9: sparsity 0.6016 (asked 0.6000), 122 parameters (44%) left")


def test_two_recipes_for_different_targets(tmp_path: Path) -> None:
    look: list[dict[str, float]] = []
    few = Recipe(schedule=OneShot(0.25, 3), targets=Targets(include=("first",)))
    many = Recipe(schedule=OneShot(0.75, 6), targets=Targets(include=("second",)), granularity=Block((4, 1)))
    callback = PruningCallback([few, many])
    model = LinearNet()
    shares = AfterStep(lambda _, m: look.append({n: 1 - k.float().mean().item() for n, k in masks.read(m).items()}))
    trainer(tmp_path, callback, shares).fit(model, loader())
    assert look[2] == {"first.weight": 0.25, "second.weight": 0}
    assert look[5] == {"first.weight": 0.25, "second.weight": 0.75}
    assert callback.sparsity == (0.25 * 192 + 0.75 * 64) / 256


def test_channels_and_weights_in_one_run(tmp_path: Path) -> None:
    thin = Recipe(schedule=STEPS, granularity=Channel(), targets=Targets(include=("conv2",)))
    sparse = Recipe(schedule=STEPS, targets=Targets(include=("conv3",)))
    model = Net()
    trainer(tmp_path, PruningCallback([thin, sparse])).fit(model, loader())
    assert is_plain(model)
    assert (model.conv1.out_channels, model.conv2.out_channels, model.conv3.in_channels) == (8, 3, 3)
    assert int((model.conv3.weight == 0).sum()) == round(0.6 * model.conv3.weight.numel())


def test_share_of_the_run(tmp_path: Path) -> None:
    callback = PruningCallback(Recipe(schedule=Linear(0.5, begin_step=0.1, end_step=0.7, frequency=100)))
    trainer(tmp_path, callback).fit(LinearNet(), loader())
    assert [event.step for event in callback.events] == [7]


def test_schedule_past_the_end_is_refused_before_the_first_step(tmp_path: Path) -> None:
    model, record = LinearNet(), Record()
    callback = PruningCallback(Recipe(schedule=Linear(0.5, end_step=11, frequency=5)))
    with pytest.raises(ValueError, match=r"ends at step 11, but this run has only 10 optimizer steps"):
        trainer(tmp_path, callback, record).fit(model, loader())
    assert record.zeros == []
    trainer(tmp_path, PruningCallback(Recipe(schedule=Linear(0.5, end_step=10, frequency=5)))).fit(
        LinearNet(), loader()
    )


class Endless(IterableDataset[tuple[Tensor, Tensor]]):
    def __iter__(self) -> Any:
        return ((images, labels) for images, labels in loader(batches=3).dataset)


def test_unknown_length_leaves_the_check_out(tmp_path: Path) -> None:
    data = DataLoader(Endless(), 4)
    with pytest.warns(UserWarning, match=r"stopped short: asked for sparsity 0\.5, kept 0\.25 at step 6"):
        trainer(tmp_path, PruningCallback(Recipe(schedule=Linear(0.5, end_step=10, frequency=5)))).fit(
            LinearNet(), data
        )
    with pytest.raises(ValueError, match=r"end_step = 1\.0 is a share .*: the training data have no length"):
        trainer(tmp_path, PruningCallback(Recipe(schedule=Linear(0.5)))).fit(LinearNet(), data)
    run = trainer(tmp_path, PruningCallback(Recipe(schedule=Linear(0.5, end_step=10))), max_steps=4)
    with pytest.raises(ValueError, match="ends at step 10, but this run has only 4"):
        run.fit(LinearNet(), data)


class Tunable(LinearNet):
    def __init__(self) -> None:
        super().__init__()
        self.batch_size, self.lr = 2, 0.01

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(loader(batches=10).dataset, self.batch_size)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), self.lr)


@pytest.mark.parametrize("tuner", [BatchSizeFinder, LearningRateFinder])
@pytest.mark.filterwarnings("ignore:.*does not have many workers|.*max_trials|You provided multiple:UserWarning")
def test_tuners_leave_the_check_out(tmp_path: Path, tuner: Any) -> None:
    finder = tuner(
        **({"max_trials": 2, "steps_per_trial": 1} if tuner is BatchSizeFinder else {"num_training_steps": 8})
    )
    record, callback = Record(), PruningCallback(Recipe(schedule=OneShot(0.5, begin_step=8)))
    trainer(tmp_path, finder, callback, record).fit(Tunable())
    assert [event.step for event in callback.events] == [8]
    assert record.zeros == [0] * 7 + [128] * (len(record.zeros) - 7)


@pytest.mark.parametrize("granularity", [Element(), Channel()])
def test_fast_dev_run_shows_the_whole_corridor(tmp_path: Path, granularity: Any) -> None:
    callback = PruningCallback(
        Recipe(schedule=Linear(0.5, begin_step=0.5), granularity=granularity, criterion=Taylor())
    )
    model = Net()
    trainer(tmp_path, callback, fast_dev_run=True).fit(model, loader())
    assert [(event.step, event.asked) for event in callback.events] == [(1, 0.5)]
    assert is_plain(model)
    assert callback.is_done


def test_run_stopped_short_finalizes_and_says_so(tmp_path: Path) -> None:
    model = LinearNet()
    stop = AfterStep(lambda run, _: setattr(run, "should_stop", run.global_step >= 6))
    recipe = Recipe(schedule=Linear(0.6, begin_step=0, end_step=9, frequency=3))
    with pytest.warns(UserWarning, match=r"stopped short: asked for sparsity 0\.6, kept 0\.4 at step 6"):
        trainer(tmp_path, PruningCallback(recipe), stop).fit(model, loader())
    assert is_plain(model)


def test_max_time_finalizes(tmp_path: Path) -> None:
    model = LinearNet()
    recipe = Recipe(schedule=OneShot(0.5, begin_step=10**6))
    with pytest.warns(UserWarning, match="stopped short"):
        trainer(tmp_path, PruningCallback(recipe), max_time={"milliseconds": 200}, max_epochs=-1).fit(model, loader())
    assert is_plain(model)


def test_masks_stay_when_asked_for(tmp_path: Path) -> None:
    model = LinearNet()
    trainer(tmp_path, PruningCallback(Recipe(schedule=STEPS), finalize=False)).fit(model, loader())
    assert zeros(model) == round(0.6 * 256)


def test_second_fit_trains_on_without_pruning(tmp_path: Path) -> None:
    model, callback, record = LinearNet(), PruningCallback(Recipe(schedule=STEPS)), Record()
    trainer(tmp_path, callback).fit(model, loader())
    before = model.first.weight.detach().clone()
    with pytest.warns(UserWarning, match="its masks are folded, so this fit may bring zeros back to life"):
        trainer(tmp_path, callback, record).fit(model, loader())
    assert record.zeros == [0] * 10
    assert len(callback.events) == 3
    assert is_plain(model)
    assert not torch.equal(before, model.first.weight)


def test_second_fit_of_a_model_that_kept_its_masks(tmp_path: Path) -> None:
    model, record = LinearNet(), Record()
    callback = PruningCallback(Recipe(schedule=STEPS), finalize=False)
    trainer(tmp_path, callback).fit(model, loader())
    trainer(tmp_path, callback, record, max_epochs=1).fit(model, loader())
    assert record.zeros == [round(0.6 * 256)] * 5


def test_new_model_starts_anew(tmp_path: Path) -> None:
    callback = PruningCallback(Recipe(schedule=STEPS))
    trainer(tmp_path, callback).fit(LinearNet(), loader())
    record, model = Record(), Net()
    trainer(tmp_path, callback, record).fit(model, loader())
    assert [event.step for event in callback.events] == [5, 8, 9]
    assert record.zeros[:5] == [0, 0, 0, 0, record.zeros[4]]
    assert record.zeros[-1] == round(0.6 * sum(w.numel() for n, w in model.named_parameters() if w.dim() > 1))


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true", "bf16-true"])
@pytest.mark.parametrize("granularity", [Element(), Channel()])
def test_precisions(tmp_path: Path, precision: Any, granularity: Any) -> None:
    model, callback = Net(), PruningCallback(Recipe(schedule=STEPS, granularity=granularity, criterion=Taylor()))
    trainer(tmp_path, callback, precision=precision).fit(model, loader())
    assert callback.sparsity == pytest.approx(0.6, abs=0.03)
    assert is_plain(model)
    if granularity == Channel():
        assert model.conv1.out_channels + model.conv2.out_channels == 6


def test_events_cost_no_growth(tmp_path: Path) -> None:
    hooks: list[int] = []
    look = AfterStep(lambda _, model: hooks.append(sum(len(m._forward_pre_hooks) for m in model.modules())))
    recipe = Recipe(schedule=Linear(0.6, 0, 10, 1), allocation=Global())
    trainer(tmp_path, PruningCallback(recipe), look).fit(LinearNet(), loader())
    assert hooks == [2] * 10


def test_step_that_the_gradient_scaler_leaves_out_is_not_observed() -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight, nn.Parameter(torch.ones(1))], lr=0.1)
    for gradient, scaler, expected in (
        (torch.inf, object(), True),
        (1.0, object(), False),
        (torch.inf, None, False),
    ):
        weight.grad = torch.full((3,), gradient)
        run: Any = SimpleNamespace(scaler=scaler)
        assert is_left_out(run, optimizer) is expected


def test_share_of_a_run_whose_length_nobody_knows(tmp_path: Path) -> None:
    recipe = Recipe(schedule=Linear(0.5, end_step=0.7, frequency=4), targets=Targets(include=("first",)))
    with pytest.raises(ValueError, match=r"end_step = 0\.7 is a share of the run, .*: TwoOptimizers optimizes by hand"):
        trainer(tmp_path, PruningCallback(recipe)).fit(TwoOptimizers(), loader())
