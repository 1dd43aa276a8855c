"""The dense model teaches the pruned one: the loss is what it would be by hand, and nothing of it is left behind."""

import gc
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from distillation_cases import WEIGHT, ByHand, Inner, Manual, ManualByHand, T, weights
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from processes import on_ranks
from support import AfterStep, LinearNet, Net, Resumable, loader, trainer
from torch import Tensor, nn

from lightning_prune import (
    Channel,
    Distillation,
    Guard,
    Linear,
    OneShot,
    PruningCallback,
    Recipe,
    Taylor,
    checkpoints,
    masks,
)
from lightning_prune.distillation import Lessons, Teacher, feature_loss, find_pairs, soft_target_loss
from lightning_prune.errors import CheckpointError, PruningError

STEPS = Linear(final_sparsity=0.6, begin_step=2, end_step=6, frequency=2)
SPARSE = Recipe(schedule=STEPS)
THIN = Recipe(schedule=STEPS, granularity=Channel(), criterion=Taylor())
TAUGHT = Distillation(temperature=T, weight=WEIGHT)


def fitted(folder: Path, model: Any, *callbacks: Any, **options: Any) -> Any:
    trainer(folder, *callbacks, **options).fit(model, loader())
    return model


def seeded(net: Any, **options: Any) -> Any:
    torch.manual_seed(0)
    return net(**options)


def assert_close(model: nn.Module, other: nn.Module) -> None:
    ours, theirs = weights(model), weights(other)
    assert all(np.allclose(ours[name], theirs[name], rtol=1e-10, atol=1e-12) for name in theirs)


class TestLosses:
    @pytest.mark.parametrize(("shape", "axis"), [((5, 4), 1), ((2, 4, 3, 3), 1), ((2, 7, 4), -1)])
    def test_soft_targets_are_the_formula(self, shape: tuple[int, ...], axis: int) -> None:
        student, teacher = torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)

        def softmax(x: np.ndarray) -> np.ndarray:
            return np.exp(x) / np.exp(x).sum(axis=axis, keepdims=True)

        p, q = softmax(teacher.numpy() / T), softmax(student.numpy() / T)
        expected = T**2 * (p * np.log(p / q)).sum(axis=axis).mean()
        assert float(soft_target_loss(student, teacher, T, axis)) == pytest.approx(expected, rel=1e-12)

    def test_gradient_keeps_its_size_when_the_temperature_rises(self) -> None:
        # Hinton 2015: at a high temperature it is that of half the squared distance of the centred logits, over N
        student, teacher = torch.randn(1, 6, requires_grad=True), torch.randn(1, 6)
        soft_target_loss(student, teacher, 1e3).backward()
        difference = student.detach() - teacher
        assert student.grad is not None
        assert torch.allclose(student.grad, (difference - difference.mean()) / 6, atol=1e-3)

    def test_features_are_relative_and_averaged_over_the_layers(self) -> None:
        one, other = torch.randn(2, 3, 4), torch.randn(2, 5)
        assert float(feature_loss([one, other], [one, other])) == 0
        assert float(feature_loss([one, torch.zeros(2, 5)], [one, other])) == pytest.approx(0.5)
        assert float(feature_loss([7 * one], [7 * (one + 1)])) == pytest.approx(float(feature_loss([one], [one + 1])))

    def test_halves_are_compared_in_float32(self) -> None:
        assert soft_target_loss(torch.randn(2, 3).half(), torch.randn(2, 3).half(), T).dtype == torch.float32


class TestTraining:
    @pytest.mark.parametrize("recipe", [SPARSE, THIN], ids=["elements", "channels"])
    @pytest.mark.parametrize("accumulate", [1, 2])
    def test_is_what_it_would_be_by_hand(self, recipe: Recipe, accumulate: int, tmp_path: Path) -> None:
        options: dict[str, Any] = {"precision": "64-true", "accumulate_grad_batches": accumulate, "max_epochs": 3}
        by_hand = fitted(tmp_path, seeded(ByHand), PruningCallback(recipe), **options)
        callback = PruningCallback(recipe, distillation=TAUGHT)
        assert_close(fitted(tmp_path, seeded(Net), callback, **options), by_hand)

    def test_changes_what_is_learned(self, tmp_path: Path) -> None:
        taught, plain = (
            fitted(tmp_path, seeded(Net), PruningCallback(SPARSE, distillation=chosen)) for chosen in (TAUGHT, None)
        )
        assert not np.allclose(weights(taught)["head.weight"], weights(plain)["head.weight"], rtol=1e-3)

    def test_in_manual_optimization(self, tmp_path: Path) -> None:
        options: dict[str, Any] = {"precision": "64-true", "max_epochs": 4}
        by_hand = fitted(tmp_path, seeded(ManualByHand), PruningCallback(SPARSE), **options)
        callback = PruningCallback(SPARSE, distillation=TAUGHT)
        assert_close(fitted(tmp_path, seeded(Manual), callback, **options), by_hand)

    def test_of_a_submodule_that_training_step_calls(self, tmp_path: Path) -> None:
        by_hand = fitted(tmp_path, seeded(ByHand), PruningCallback(SPARSE), precision="64-true")
        for module in (None, "net"):
            torch.manual_seed(0)
            Net()  # Inner makes a Net before its own
            model = Inner()
            model.net.load_state_dict(seeded(Net).state_dict())
            chosen = Distillation(temperature=T, weight=WEIGHT, module=module)
            fitted(tmp_path, model, PruningCallback(SPARSE, distillation=chosen), precision="64-true")
            state = weights(model.net)
            assert np.allclose(state["conv2.bias"], weights(by_hand)["conv2.bias"], rtol=1e-10, atol=1e-12)

    def test_of_a_given_teacher_is_that_of_its_copy(self, tmp_path: Path) -> None:
        dense = seeded(Net)
        before = weights(dense)
        given = Distillation(temperature=T, weight=WEIGHT, teacher=dense)
        model = fitted(tmp_path, seeded(Net), PruningCallback(SPARSE, distillation=given))
        own = fitted(tmp_path, seeded(Net), PruningCallback(SPARSE, distillation=TAUGHT))
        assert all(np.array_equal(weights(model)[name], value) for name, value in weights(own).items())
        assert all(np.array_equal(weights(dense)[name], value) for name, value in before.items())
        assert dense.training
        assert all(p.requires_grad and p.grad is None for p in dense.parameters())

    @pytest.mark.parametrize("shrinks", [False, True])
    def test_features_of_kept_channels(self, shrinks: bool, tmp_path: Path) -> None:
        """Masked and removed channels teach alike."""
        chosen = Distillation(weight=0, features=0.01)
        terms: list[float] = []
        callback = PruningCallback(THIN, distillation=chosen, compact_every_event=shrinks)
        note = AfterStep(lambda t, m: terms.append(float(t.callback_metrics["distillation"])))
        model = fitted(tmp_path, seeded(Net), callback, note, precision="64-true")
        other = PruningCallback(THIN, distillation=chosen)
        masked = fitted(tmp_path, seeded(Net), other, precision="64-true")
        assert_close(model, masked)
        assert all(0 < term < 1 for term in terms)

    def test_leaves_no_trace(self, tmp_path: Path) -> None:
        model, modes = seeded(Net), []
        callback = PruningCallback(SPARSE, distillation=Distillation(features=1.0))

        def look(t: L.Trainer, m: Any) -> None:
            assert callback._distilling is not None
            teacher = callback._distilling._teacher
            assert teacher is not None
            held = {id(p) for p in teacher.module.parameters()}
            assert not held & {id(p) for p in (*m.parameters(), *m.buffers())}
            assert all(p.grad is None and not p.requires_grad for p in teacher.module.parameters())
            modes.append(teacher.module.training)

        fit = trainer(tmp_path, callback, AfterStep(look))
        hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
        fit.fit(model, loader())
        assert modes == [False] * 10
        assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()] == hooks
        assert not {"training_step", "backward"} & set(vars(fit.strategy))
        assert model.training

    def test_random_generators_go_on_as_without_a_teacher(self, tmp_path: Path) -> None:
        class Noisy(Net):
            def forward(self, images: Tensor) -> Tensor:
                return super().forward(images + torch.rand_like(images))

        states = []
        for chosen in (None, TAUGHT):
            torch.manual_seed(1)
            fitted(tmp_path, Noisy(), PruningCallback(SPARSE, distillation=chosen))
            states.append(torch.get_rng_state())
        assert torch.equal(*states)

    def test_an_error_in_training_gives_everything_back(self, tmp_path: Path) -> None:
        def fail(t: L.Trainer, m: Any) -> None:
            raise OSError("no more")

        model = Net()
        fit = trainer(tmp_path, PruningCallback(SPARSE, distillation=TAUGHT), AfterStep(fail))
        with pytest.raises(OSError, match="no more"):
            fit.fit(model, loader())
        assert not {"training_step", "backward"} & set(vars(fit.strategy))
        assert not model._forward_hooks

    def test_with_a_guard_that_rolls_back(self, tmp_path: Path) -> None:
        guard = Guard("val_loss", "min", max_drop=0.0, patience=1, on_fail="stop", baseline=0.0)
        callback = PruningCallback(THIN, distillation=Distillation(features=1.0), guard=guard)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer(tmp_path, callback, max_epochs=3).fit(Net(), loader(), loader())
        assert callback.sparsity == 0

    @pytest.mark.parametrize("precision", ["bf16-mixed", "32-true", "bf16-true"])
    def test_in_other_precisions(self, precision: Any, tmp_path: Path) -> None:
        callback = PruningCallback(SPARSE, distillation=Distillation(features=1.0))
        model = fitted(tmp_path, Net(), callback, precision=precision)
        assert all(bool(p.isfinite().all()) for p in model.parameters())

    def test_taylor_sees_the_gradient_of_the_whole_loss(self, tmp_path: Path) -> None:
        recipe = Recipe(schedule=OneShot(0.5, begin_step=3), criterion=Taylor())
        by_hand = fitted(tmp_path, seeded(ByHand), PruningCallback(recipe), precision="64-true")
        callback = PruningCallback(recipe, distillation=TAUGHT)
        assert_close(fitted(tmp_path, seeded(Net), callback, precision="64-true"), by_hand)


class TestResuming:
    @staticmethod
    def run(folder: Path, model: Any, callback: PruningCallback, step: int | None = None, **options: Any) -> Any:
        saving = ModelCheckpoint(
            folder if step is None else folder / "again", filename="{step}", every_n_train_steps=1, save_top_k=-1
        )
        path = None if step is None else folder / f"step={step}.ckpt"
        fit = trainer(folder, callback, saving, **options)
        fit.fit(model, Resumable(), ckpt_path=path, weights_only=bool(path))
        return model

    @pytest.mark.parametrize("shrinks", [False, True])
    @pytest.mark.parametrize("step", [1, 5, 9, 10])
    def test_is_as_if_never_stopped(self, step: int, shrinks: bool, tmp_path: Path) -> None:
        def callback() -> PruningCallback:
            chosen = Distillation(temperature=T, weight=WEIGHT, features=0.5)
            return PruningCallback(THIN, distillation=chosen, compact_every_event=shrinks)

        whole = weights(self.run(tmp_path, seeded(Net), callback()))
        torch.manual_seed(5)
        again = weights(self.run(tmp_path, Net(), callback(), step))
        assert whole.keys() == again.keys()
        assert all(np.array_equal(again[name], value) for name, value in whole.items())
        assert len(list(tmp_path.glob("teacher-*.ckpt"))) == 1
        if step < 10:
            names = [{path.name for path in folder.glob("teacher-*")} for folder in (tmp_path, tmp_path / "again")]
            assert names[0] == names[1]

    def test_of_a_finished_run_goes_on_with_its_teacher(self, tmp_path: Path) -> None:
        def callback() -> PruningCallback:
            return PruningCallback(THIN, distillation=Distillation(features=0.5))

        saving = ModelCheckpoint(tmp_path, filename="last", save_last=True, save_on_train_epoch_end=True)
        first = callback()
        trainer(tmp_path, first, saving).fit(seeded(Net), Resumable())
        torch.manual_seed(5)
        again = callback()
        saving = ModelCheckpoint(tmp_path / "again", filename="last", save_last=True, save_on_train_epoch_end=True)
        fit = trainer(tmp_path, again, saving, max_epochs=4)
        fit.fit(Net(), Resumable(), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
        assert first._distilling is not None
        assert again._distilling is not None
        assert first._distilling.state_dict() == again._distilling.state_dict()

    def test_checkpoint_holds_no_teacher(self, tmp_path: Path) -> None:
        taught, plain = tmp_path / "taught", tmp_path / "plain"
        self.run(taught, Net(), PruningCallback(SPARSE, distillation=TAUGHT))
        self.run(plain, Net(), PruningCallback(SPARSE))
        read = [torch.load(folder / "step=4.ckpt", weights_only=True) for folder in (taught, plain)]
        assert read[0]["state_dict"].keys() == read[1]["state_dict"].keys()
        said = read[0][checkpoints.KEY]["distillation"]
        assert set(said) == {"settings", "digest", "file", "pairs"}
        assert read[1][checkpoints.KEY]["distillation"] is None

    def test_teacher_is_a_checkpoint_of_the_dense_model(self, tmp_path: Path) -> None:
        dense = weights(seeded(Net))
        self.run(tmp_path, seeded(Net), PruningCallback(SPARSE, distillation=TAUGHT))
        (file,) = tmp_path.glob("teacher-*.ckpt")
        model = Net()
        model.load_state_dict(torch.load(file, weights_only=True)["state_dict"])
        assert all(np.array_equal(weights(model)[name], value) for name, value in dense.items())

    def test_without_the_file_is_refused_and_a_given_one_will_do(self, tmp_path: Path) -> None:
        whole = weights(self.run(tmp_path, seeded(Net), PruningCallback(SPARSE, distillation=TAUGHT)))
        (file,) = tmp_path.glob("teacher-*.ckpt")
        file.unlink()
        with pytest.raises(CheckpointError, match=f"{file.name} is not there: bring that file along, or give"):
            self.run(tmp_path, Net(), PruningCallback(SPARSE, distillation=TAUGHT), 4)
        given = Distillation(temperature=T, weight=WEIGHT, teacher=seeded(Net))
        again = weights(self.run(tmp_path, Net(), PruningCallback(SPARSE, distillation=given), 4))
        assert all(np.array_equal(again[name], value) for name, value in whole.items())

    def test_with_a_damaged_file_is_refused(self, tmp_path: Path) -> None:
        self.run(tmp_path, seeded(Net), PruningCallback(SPARSE, distillation=TAUGHT))
        (file,) = tmp_path.glob("teacher-*.ckpt")
        held = torch.load(file, weights_only=True)
        held["state_dict"]["head.bias"][0] += 1e-3
        torch.save(held, file)
        with pytest.raises(CheckpointError, match=r"another teacher than .*, or damaged"):
            self.run(tmp_path, Net(), PruningCallback(SPARSE, distillation=TAUGHT), 4)
        file.write_bytes(file.read_bytes()[:1000])
        with pytest.raises(CheckpointError, match=f"{file.name} cannot be read"):
            self.run(tmp_path, Net(), PruningCallback(SPARSE, distillation=TAUGHT), 4)

    def test_with_another_distillation_is_refused(self, tmp_path: Path) -> None:
        self.run(tmp_path, seeded(Net), PruningCallback(SPARSE, distillation=TAUGHT))
        other = Distillation(temperature=2.0, weight=WEIGHT)
        with pytest.raises(CheckpointError, match=r"temperature was 3\.0, is 2\.0\nresume with"):
            self.run(tmp_path, Net(), PruningCallback(SPARSE, distillation=other), 4)
        with pytest.raises(CheckpointError, match=r"weight was 0\.7, is None"):
            self.run(tmp_path, Net(), PruningCallback(SPARSE), 4)
        other = Distillation(temperature=T, weight=WEIGHT, teacher=Net())
        with pytest.raises(CheckpointError, match="another one than taught the run"):
            self.run(tmp_path, Net(), PruningCallback(SPARSE, distillation=other), 4)
        allowed = PruningCallback(SPARSE, distillation=other, resume_with_other_recipe=True)
        self.run(tmp_path, Net(), allowed, 4)

    def test_of_a_run_without_one_needs_a_teacher(self, tmp_path: Path) -> None:
        self.run(tmp_path, seeded(Net), PruningCallback(SPARSE))
        callback = PruningCallback(SPARSE, distillation=TAUGHT, resume_with_other_recipe=True)
        with pytest.raises(CheckpointError, match="its dense model is not known"):
            self.run(tmp_path, Net(), callback, 4)


def distilled_on_ranks(folder: str, name: str, manual: bool) -> dict[str, Any]:
    """Fit on other batches on each of two ranks, seeded differently before DDP makes the weights one."""
    import os

    torch.manual_seed(int(os.environ["RANK"]))
    kinds: Any = {"hooks": (Net, Manual), "by hand": (ByHand, ManualByHand), "features": (Net, Manual)}[name]
    features = 0.01 if name == "features" else 0.0
    chosen = None if name == "by hand" else Distillation(temperature=T, weight=WEIGHT, features=features)
    callback = PruningCallback(THIN, distillation=chosen, compact_every_event=not manual)
    strategy = DDPStrategy(process_group_backend="gloo", find_unused_parameters=manual)
    model = kinds[manual]()
    fit = trainer(Path(folder), callback, strategy=strategy, devices=2, precision="64-true", max_epochs=4)
    fit.fit(model, loader(10))
    return weights(model)


class TestRanks:
    @pytest.mark.parametrize("manual", [False, pytest.param(True, marks=pytest.mark.slow)])
    def test_under_ddp_it_is_what_it_would_be_by_hand(self, manual: bool, tmp_path: Path) -> None:
        ours = on_ranks(distilled_on_ranks, 2, str(tmp_path), "hooks", manual)
        theirs = on_ranks(distilled_on_ranks, 2, str(tmp_path), "by hand", manual)
        for name, value in ours[0].items():
            if "running" not in name and "tracked" not in name:  # DDP keeps those of each rank until the next forward
                assert np.array_equal(value, ours[1][name]), name
            assert np.allclose(value, theirs[0][name], rtol=1e-10, atol=1e-12), name

    @pytest.mark.slow
    def test_features_under_ddp(self, tmp_path: Path) -> None:
        ours = on_ranks(distilled_on_ranks, 2, str(tmp_path), "features", False)
        assert all(np.array_equal(ours[0][n], ours[1][n]) for n in ours[0] if n.endswith(("weight", "bias")))


class TestBadInput:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"temperature": 0}, r"temperature must be a number above 0, got 0"),
            ({"temperature": float("nan")}, "temperature must be"),
            ({"weight": 1.1}, r"weight must be a share in \[0, 1\], got 1\.1"),
            ({"weight": 0}, "teaches nothing"),
            ({"features": -1.0}, "features must be 0 or more"),
        ],
    )
    def test_numbers(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Distillation(**options)

    @pytest.mark.parametrize(
        "options", [{"teacher": "net"}, {"module": 3}, {"logits": "logits"}, {"axis": 1.0}, {"weight": "a"}]
    )
    def test_types(self, options: dict[str, Any]) -> None:
        with pytest.raises(TypeError, match=f"Distillation.{next(iter(options))} must be"):
            Distillation(**options)
        with pytest.raises(TypeError, match="takes a Distillation"):
            PruningCallback(SPARSE, distillation=0.5)  # type: ignore[arg-type]

    def test_a_teacher_of_other_classes_leaves_the_model_untouched(self, tmp_path: Path) -> None:
        model, teacher = Net(), Net()
        teacher.head, teacher.attn_mask = nn.Linear(8, 5), torch.ones(5)
        before = weights(model)
        with pytest.raises(ValueError, match=r"logits of shape \(2, 5\) where the model returns \(2, 4\)"):
            fitted(tmp_path, model, PruningCallback(SPARSE, distillation=Distillation(teacher=teacher)))
        assert all(np.array_equal(tensor.detach().numpy(), before[n]) for n, tensor in masks.dense_names(model).items())
        assert not model._forward_hooks

    def test_without_an_example_it_is_found_in_the_first_step(self, tmp_path: Path) -> None:
        teacher = nn.Sequential(nn.Flatten(), nn.Linear(36, 5))
        with pytest.raises(ValueError, match=r"logits of shape \(4, 5\)"):
            fitted(tmp_path, LinearNet(), PruningCallback(SPARSE, distillation=Distillation(teacher=teacher)))

    def test_a_teacher_without_the_layers_to_match(self, tmp_path: Path) -> None:
        chosen = Distillation(teacher=nn.Sequential(nn.Flatten(), nn.Linear(36, 4)), features=1.0)
        with pytest.raises(ValueError, match="the teacher Sequential has no conv3"):
            fitted(tmp_path, Net(), PruningCallback(THIN, distillation=chosen))

    def test_a_training_step_that_calls_parts_only(self, tmp_path: Path) -> None:
        class Parts(LinearNet):
            def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
                return self.second(self.first(batch[0].flatten(1)[:, :12]).relu()).square().mean()

        with pytest.raises(PruningError, match=r"none of the modules .*\(self\): let it call self"):
            fitted(tmp_path, Parts(), PruningCallback(SPARSE, distillation=TAUGHT))
        chosen = Distillation(module="third")
        with pytest.raises(ValueError, match="Parts has no such submodule"):
            fitted(tmp_path, Parts(), PruningCallback(SPARSE, distillation=chosen))

    def test_manual_optimization_without_manual_backward(self, tmp_path: Path) -> None:
        class Bare(Manual):
            def manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
                loss.backward()

        with pytest.raises(PruningError, match=r"call self\.manual_backward\(loss\)"):
            fitted(tmp_path, Bare(), PruningCallback(SPARSE, distillation=TAUGHT))

    @pytest.mark.parametrize("out", [{"logits": torch.zeros(2, 3)}, torch.zeros(2, 1), torch.zeros(2).long()])
    def test_outputs_that_are_no_logits(self, out: object) -> None:
        with pytest.raises((TypeError, ValueError), match="Distillation"):
            Distillation().logits_in(out)
        assert Distillation(logits=lambda o: o["logits"]).logits_in({"logits": torch.zeros(2, 3)}).shape == (2, 3)


def test_a_loss_takes_the_terms_that_it_depends_on() -> None:
    net = nn.Linear(3, 4)
    lessons = Lessons(net, Teacher(net), Distillation())
    with torch.no_grad():
        net.weight.add_(1)
    with lessons.listening():
        first, second = net(torch.randn(2, 3)), net(torch.randn(2, 3))
        assert len(lessons.pending) == 2
        expected = lessons.pending[1].term
        assert lessons.take((second * 2).sum(), has_one_loss=False) is not None
        assert float(expected.detach()) > 0
        assert lessons.take(second.sum(), has_one_loss=False) is None
        assert lessons.take(net.weight.sum(), has_one_loss=False) is None
        assert lessons.take(first.sum(), has_one_loss=False) is not None
    net(torch.randn(2, 3))
    assert not lessons.pending
    lessons.remove()
    gc.collect()
    assert not net._forward_hooks


def test_pairs_are_the_last_layer_of_each_group_and_the_targets() -> None:
    from lightning_prune.binding import bind

    net = Net()
    inputs = (net.example_input_array,)
    channels, elements = bind(THIN, net, inputs), bind(SPARSE, net, inputs)
    assert [pair.path for pair in find_pairs(net, [channels.units])] == ["conv3", "norm2"]
    assert [pair.path for pair in find_pairs(net, [elements.units])] == ["conv1", "conv2", "conv3", "head"]
