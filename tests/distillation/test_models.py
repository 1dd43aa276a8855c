"""Models that compute parts twice, in place, compiled or in another float type are taught like any other."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distillation_cases import SPARSE, TAUGHT, THIN, WEIGHT, T, assert_close, fitted, seeded, weights
from packages import VERSION, ModelCheckpoint
from support import Net, Resumable, loader, trainer
from torch import Tensor
from torch.nn.functional import cross_entropy, relu
from torch.utils.checkpoint import checkpoint

from lightning_prune import Distillation, Guard, NoRepair, PruningCallback
from lightning_prune.distillation import Teacher


@pytest.mark.parametrize("whole", [False, True])
def test_under_activation_checkpoints(whole: bool, tmp_path: Path) -> None:
    """The term lies outside of what is computed a second time."""

    class Rerun(Net):
        def forward(self, images: Tensor) -> Tensor:
            def middle(hidden: Tensor) -> Tensor:
                return self.conv3(relu(self.norm2(self.conv2(hidden))))

            hidden = relu(self.norm1(self.conv1(images)))
            is_inner = self.training and not whole
            added = checkpoint(middle, hidden, use_reentrant=False) if is_inner else middle(hidden)
            return self.head(relu(hidden + added).mean((2, 3)))

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            logits = checkpoint(self, batch[0], use_reentrant=False) if whole else self(batch[0])
            return cross_entropy(logits, batch[1])  # type: ignore[arg-type]

    chosen = Distillation(temperature=T, weight=WEIGHT, features=0.01)
    found = []
    for model in (seeded(Rerun), seeded(Net)):
        fitted(tmp_path, model, PruningCallback(SPARSE, distillation=chosen), precision="64-true")
        found.append({name: p.detach().numpy() for name, p in model.named_parameters()})
    assert all(np.allclose(value, found[1][name], rtol=1e-10, atol=1e-12) for name, value in found[0].items())


def test_what_is_done_in_place_is_done_once(tmp_path: Path) -> None:
    """The teacher gets inputs of its own, and logits count as they were returned."""

    class InPlace(Net):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images.mul_(2))

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return cross_entropy(self(batch[0].clone()).mul_(3), batch[1])

    class Copying(InPlace):
        def forward(self, images: Tensor) -> Tensor:
            return Net.forward(self, images * 2)

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return cross_entropy(self(batch[0]) * 3, batch[1])

    models = [fitted(tmp_path, seeded(net), PruningCallback(SPARSE, distillation=TAUGHT)) for net in (InPlace, Copying)]
    assert_close(*models)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed"])
def test_a_given_teacher_comes_to_the_type_of_the_model(dtype: torch.dtype, precision: Any, tmp_path: Path) -> None:
    own = seeded(Net).to(dtype)
    same = seeded(Net).to(dtype).to(torch.float64 if precision == "64-true" else torch.float32)
    models = [
        fitted(
            tmp_path,
            seeded(Net),
            PruningCallback(SPARSE, distillation=Distillation(teacher=one)),
            precision=precision,
        )
        for one in (own, same)
    ]
    assert own.head.weight.dtype == dtype
    assert_close(*models)


@pytest.mark.skipif(VERSION < (2, 5), reason="Lightning 2.4 validates at other steps after a resume")
@pytest.mark.parametrize("shrinks", [False, True])
def test_a_guard_that_rolls_back_leaves_the_teacher_and_resumes(shrinks: bool, tmp_path: Path) -> None:
    class Falling(Net):
        def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
            self.log("val_acc", torch.tensor(float(self.trainer.global_step < 6)))

    def run(folder: Path, model: Any, path: Path | None = None) -> tuple[Any, PruningCallback]:
        guard = Guard("val_acc", "max", max_drop=0.1, patience=1)
        chosen = Distillation(features=0.01)
        callback = PruningCallback(THIN, distillation=chosen, guard=guard, compact_every_event=shrinks)
        saving = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        fit = trainer(folder, callback, saving, max_epochs=4)
        fit.fit(model, Resumable(), loader(), ckpt_path=path, weights_only=path is not None)
        return model, callback

    dense = Teacher(seeded(Falling)).digest
    whole, callback = run(tmp_path, seeded(Falling))
    assert any(event.sparsity > callback.sparsity for event in callback.events) or callback.sparsity < 0.6
    for step in (5, 12):
        torch.manual_seed(7)
        again, other = run(tmp_path / "again", Falling(), tmp_path / f"step={step}.ckpt")
        assert all(np.array_equal(weights(again)[name], value) for name, value in weights(whole).items())
        for one in (callback, other):
            assert one._course is not None
            assert one._course.distilling is not None
            assert one._course.distilling._teacher is not None
            assert one._course.distilling._teacher.digest == dense


@pytest.mark.slow
@pytest.mark.parametrize("shrinks", [False, True])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*treespec", "ignore:The .grad attribute")
def test_a_compiled_model(shrinks: bool, tmp_path: Path) -> None:
    models = []
    for is_compiled in (False, True):
        model: Any = seeded(Net)
        # a compiled model stays so, and is not repaired by default
        recipe = replace(THIN, repair=NoRepair())
        callback = PruningCallback(recipe, distillation=Distillation(features=0.01), compact_every_event=shrinks)
        whole: Any = torch.compile(model, backend="aot_eager") if is_compiled else model
        trainer(tmp_path, callback).fit(whole, loader())
        models.append(model)
    torch._dynamo.reset()
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert a.shape == b.shape
        assert torch.allclose(a, b, atol=1e-4)
