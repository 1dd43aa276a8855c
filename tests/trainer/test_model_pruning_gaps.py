"""Where lightning.pytorch.callbacks.ModelPruning fails, one test each; docs/migrate.md maps its arguments."""

import copy
import gc
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from packages import L, ModelCheckpoint, ModelPruning
from processes import on_ranks
from support import AfterStep, LinearNet, Net, Resumable, loader, trainer
from torch import nn

from lightning_prune import Channel, Iterative, Linear, OneShot, PruningCallback, Random, Recipe, finalize, summarize
from lightning_prune.model import masks

HALF = Recipe(schedule=OneShot(0.5, begin_step=3))


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1)


def sparsity(model: nn.Module) -> float:
    weights = [masks.dense_parameters(model)[name] for name in ("first.weight", "second.weight")]
    return sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)


def every_step(folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)


def built_in(folder: Path, model: Any, *callbacks: Any, epochs: int = 2, **how: Any) -> None:
    options = {"amount": 0.5, "use_lottery_ticket_hypothesis": False, "parameter_names": ["weight"]} | how
    pruning = ModelPruning(options.pop("pruning_fn", "l1_unstructured"), **options)
    trainer(folder, pruning, *callbacks, max_epochs=epochs).fit(model, loader())


def test_a_buffer_called_attn_mask(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match=r"attn_mask|attn_orig"):
        built_in(tmp_path, Net(), every_step(tmp_path / "theirs"))
    model: Any = Net()
    model.attn_mask.fill_(2.0)
    trainer(tmp_path, PruningCallback(HALF), every_step(tmp_path)).fit(model, loader())
    assert torch.load(tmp_path / "step=10.ckpt", weights_only=True)["state_dict"]["attn_mask"].tolist() == [2.0] * 4


@pytest.mark.parametrize("finalizes", [True, False])
def test_a_resumed_run_keeps_its_sparsity(tmp_path: Path, finalizes: bool) -> None:
    recipe = Recipe(schedule=Linear(0.9, begin_step=1, end_step=15, frequency=4))
    whole, again = LinearNet(adamw), LinearNet(adamw)
    first = trainer(tmp_path, PruningCallback(recipe, finalize=finalizes), every_step(tmp_path), max_epochs=4)
    first.fit(whole, Resumable())
    for step in (5, 10, 16):
        seen: list[float] = []
        look = AfterStep(lambda _, m, seen=seen: seen.append(sparsity(m)))
        callback = PruningCallback(recipe, finalize=finalizes)
        second = trainer(tmp_path, callback, every_step(tmp_path / "x"), look, max_epochs=4)
        second.fit(again, Resumable(), ckpt_path=tmp_path / f"step={step}.ckpt")
        assert min(seen) >= 0.2
        assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
    assert sparsity(again) == pytest.approx(0.9, abs=0.003)


@pytest.mark.parametrize("finalizes", [True, False])
def test_a_second_fit(tmp_path: Path, finalizes: bool) -> None:
    model, callback = LinearNet(adamw), PruningCallback(HALF, finalize=finalizes)
    for _ in range(2):
        if finalizes and callback.is_done:
            with pytest.warns(UserWarning, match="may bring zeros back to life"):
                trainer(tmp_path, callback).fit(model, loader())
        else:
            trainer(tmp_path, callback).fit(model, loader())
            assert sparsity(model) == 0.5
    if not finalizes:
        assert sparsity(finalize(model)) == 0.5


def random_masks(folder: str) -> Any:
    torch.manual_seed(int(torch.distributed.is_initialized()) + torch.randint(100, ()).item())
    model = LinearNet(adamw)
    callback = PruningCallback(Recipe(schedule=OneShot(0.5, begin_step=2), criterion=Random()), finalize=False)
    seen: list[Any] = []
    look = AfterStep(lambda _, m: seen.append({n: mask.tolist() for n, mask in masks.read(m).items()}))
    trainer(Path(folder), callback, look, strategy="ddp", devices=2).fit(model, loader(10))
    return seen[-1], [parameter.tolist() for parameter in model.parameters()]


def test_ranks_agree_on_random_masks(tmp_path: Path) -> None:
    one, other = on_ranks(random_masks, 2, str(tmp_path))
    assert one == other


def test_channels_are_removed_with_what_reads_them(tmp_path: Path) -> None:
    theirs = LinearNet()
    structured = {"pruning_dim": 0, "pruning_norm": 2, "use_global_unstructured": False}
    built_in(tmp_path, theirs, pruning_fn="ln_structured", epochs=1, **structured)
    assert theirs.first.weight.shape == (16, 12)
    assert int((theirs.second.weight.abs().sum(1) == 0).sum()) == 2  # two of the four classes are gone
    ours = Net()
    trainer(tmp_path, PruningCallback(Recipe(schedule=OneShot(0.5, begin_step=3), granularity=Channel()))).fit(
        ours, loader()
    )
    assert ours.head.out_features == 4
    assert ours.conv2.in_channels == ours.conv1.out_channels
    assert summarize(ours).parameters < summarize(Net()).parameters / 2


@pytest.mark.parametrize("recipe", [HALF, Recipe(schedule=OneShot(0.5, begin_step=3), granularity=Channel())])
def test_no_mask_is_left_in_the_exported_graph(tmp_path: Path, recipe: Recipe) -> None:
    model = Net()
    trainer(tmp_path, PruningCallback(recipe)).fit(model, loader())
    graph = torch.export.export(model.eval(), (torch.zeros(2, 1, 6, 6),)).graph
    fresh = torch.export.export(Net().eval(), (torch.zeros(2, 1, 6, 6),)).graph
    assert [node.target for node in graph.nodes if node.op == "call_function"] == [
        node.target for node in fresh.nodes if node.op == "call_function"
    ]


def test_copies_in_the_middle_of_pruning(tmp_path: Path) -> None:
    copies: list[Any] = []
    look = AfterStep(
        lambda _, model: copies.append((copy.deepcopy(model), pickle.loads(pickle.dumps(model)), sparsity(model)))
    )
    trainer(tmp_path, PruningCallback(HALF), look).fit(LinearNet(), loader())
    assert copies[0][2] == 0.0
    assert copies[-1][2] == 0.5
    for deep, pickled, expected in copies:
        assert sparsity(deep) == sparsity(pickled) == expected


def test_amounts_do_not_compound(tmp_path: Path) -> None:
    theirs, ours = LinearNet(), LinearNet()
    built_in(tmp_path, theirs, epochs=4)
    assert sparsity(theirs) > 0.93  # 0.5 asked for, 1 - 0.5 ** 4 given
    callback = PruningCallback(Recipe(schedule=Iterative(0.5, begin_step=5, end_step=15, frequency=5)))
    trainer(tmp_path, callback, max_epochs=4).fit(ours, loader())
    assert sparsity(ours) == 0.5
    assert callback.events[-1].sparsity == 0.5


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_other_precisions(tmp_path: Path, precision: Any) -> None:
    model = LinearNet(adamw)
    trainer(tmp_path, PruningCallback(HALF), precision=precision).fit(model, loader())
    assert sparsity(model) == 0.5
    assert all(bool(p.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize("profiler", ["simple", "advanced"])
def test_profilers(tmp_path: Path, profiler: str) -> None:
    model = LinearNet()
    trainer(tmp_path, PruningCallback(HALF), profiler=profiler).fit(model, loader())
    assert sparsity(model) == 0.5


def test_the_percentage_is_right(tmp_path: Path) -> None:
    model, callback = LinearNet(), PruningCallback(Recipe(schedule=OneShot(0.37, begin_step=2)))
    fit = trainer(tmp_path, callback)
    fit.fit(model, loader())
    zeros = sum(int((p == 0).sum()) for p in (model.first.weight, model.second.weight))
    assert callback.events[0].sparsity == zeros / 256 == round(0.37 * 256) / 256
    assert float(fit.callback_metrics["sparsity"]) == pytest.approx(zeros / 256)


def test_memory_is_flat_over_events(tmp_path: Path) -> None:
    held: list[int] = []

    def look(_: object, model: nn.Module) -> None:
        gc.collect()
        held.append(sum(len(module._forward_pre_hooks) + len(module._buffers) for module in model.modules()))
        held.append(sum(tensor.numel() for tensor in gc.get_objects() if type(tensor) is torch.Tensor))

    recipe = Recipe(schedule=Linear(0.9, begin_step=2, end_step=40, frequency=1))
    callback = PruningCallback(recipe)
    trainer(tmp_path, callback, AfterStep(look), max_epochs=9).fit(LinearNet(adamw), Resumable())
    hooks, tensors = held[8::2], held[9::2]
    assert len(callback.events) > 30
    assert len(set(hooks)) == 1
    assert max(tensors) - min(tensors) < 1000


@pytest.mark.parametrize("make", [adamw, lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.1)])
def test_momentum_does_not_revive_a_pruned_weight(tmp_path: Path, make: Any) -> None:
    moved: list[float] = []

    def look(run: L.Trainer, model: nn.Module) -> None:
        for parameter, mask in masks.masks_by_parameter(model).items():
            state = run.optimizers[0].state[parameter]
            for value in (parameter.detach(), *(t for t in state.values() if t.shape == parameter.shape)):
                moved.append(float(value[~mask].abs().sum()))

    trainer(tmp_path, PruningCallback(HALF), AfterStep(look), max_epochs=3).fit(LinearNet(make), loader())
    assert len(moved) > 50
    assert max(moved) == 0.0
