"""What cannot be distilled is refused by name, before the first step where that can be seen."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distillation_cases import (
    SPARSE,
    TAUGHT,
    THIN,
    Manual,
    fitted,
    weights,
)
from support import LinearNet, Net
from torch import Tensor, nn

from lightning_prune import Distillation, PruningCallback, masks
from lightning_prune.errors import PruningError


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
