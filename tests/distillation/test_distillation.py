"""The dense model teaches the pruned one: the loss is what it would be by hand, and no trace is left."""

import gc
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distillation_cases import (
    SPARSE,
    TAUGHT,
    THIN,
    WEIGHT,
    ByHand,
    Inner,
    Manual,
    ManualByHand,
    T,
    assert_close,
    fitted,
    seeded,
    weights,
)
from packages import L
from support import AfterStep, Net, loader, trainer
from torch import Tensor, nn

from lightning_prune import Distillation, Guard, OneShot, PruningCallback, Recipe, Taylor
from lightning_prune.distillation import Lessons, Teacher, feature_loss, find_pairs, soft_target_loss
from lightning_prune.run.binding import bind


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
            assert callback._course is not None
            assert callback._course.distilling is not None
            teacher = callback._course.distilling._teacher
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


def test_a_loss_takes_the_terms_that_it_depends_on() -> None:
    net = nn.Linear(3, 4)
    lessons = Lessons(net, Teacher(net), Distillation())
    with torch.no_grad():
        net.weight.add_(1)
    with lessons.listening():
        first, second = net(torch.randn(2, 3)), net(torch.randn(2, 3))
        assert len(lessons.pending) == 2
        expected = lessons.pending[1].term()
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
    net = Net()
    inputs = (net.example_input_array,)
    channels, elements = bind(THIN, net, inputs), bind(SPARSE, net, inputs)
    assert [pair.path for pair in find_pairs(net, [channels.units])] == ["conv3", "norm2"]
    assert [pair.path for pair in find_pairs(net, [elements.units])] == ["conv1", "conv2", "conv3", "head"]
