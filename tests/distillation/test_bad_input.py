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
from torch.nn.functional import relu
from torch.utils.checkpoint import checkpoint

from lightning_prune import Distillation, PruningCallback
from lightning_prune.errors import NonFiniteError, PruningError
from lightning_prune.model import masks


class TestBadInput:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"temperature": 0}, r"temperature must be a number above 0, got 0"),
            ({"temperature": float("nan")}, "temperature must be"),
            ({"weight": 1.1}, r"weight must be a number at least 0 and at most 1, got 1\.1"),
            ({"weight": 0}, "teaches nothing"),
            ({"features": -1.0}, "features must be a number at least 0"),
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

    @pytest.mark.parametrize(
        ("teacher", "message"),
        [
            (nn.Sequential(nn.Flatten(), nn.Linear(35, 4)), r"\(2, 1, 6, 6\) torch.float32: .*; give one that takes"),
            (nn.Bilinear(3, 3, 4), "the teacher Bilinear cannot take the inputs of Net"),
        ],
    )
    @pytest.mark.parametrize("has_example", [True, False])
    def test_a_teacher_of_other_inputs(
        self, teacher: nn.Module, message: str, has_example: bool, tmp_path: Path
    ) -> None:
        model = Net()
        before = weights(model)
        if not has_example:
            model.example_input_array = None
            message = message.replace("2, 1", "4, 1")
        with pytest.raises(ValueError, match=message):
            fitted(tmp_path, model, PruningCallback(SPARSE, distillation=Distillation(teacher=teacher)))
        found = masks.dense_names(model)
        assert all(np.array_equal(found[name].detach().numpy(), value) for name, value in before.items())

    def test_a_teacher_without_values(self, tmp_path: Path) -> None:
        with pytest.raises(PruningError, match=r"conv1.weight of the teacher Net lies on the meta device"):
            fitted(tmp_path, Net(), PruningCallback(SPARSE, distillation=Distillation(teacher=Net().to("meta"))))
        broken = Net()
        with torch.no_grad():
            broken.head.bias[1] = torch.nan
        with pytest.raises(NonFiniteError, match=r"head.bias of the teacher Net is NaN or infinite: load other"):
            fitted(tmp_path, Net(), PruningCallback(SPARSE, distillation=Distillation(teacher=broken)))
        with pytest.raises(NonFiniteError, match=r"head.bias of Net is NaN or infinite before the first step"):
            fitted(tmp_path, broken, PruningCallback(SPARSE, distillation=TAUGHT))

    def test_features_without_gradients(self, tmp_path: Path) -> None:
        class Rerun(Net):
            def forward(self, images: Tensor) -> Tensor:
                def middle(hidden: Tensor) -> Tensor:
                    return self.conv3(relu(self.norm2(self.conv2(hidden))))

                hidden = relu(self.norm1(self.conv1(images)))
                added = checkpoint(middle, hidden, use_reentrant=True) if self.training else middle(hidden)
                return self.head(relu(hidden + added).mean((2, 3)))

        chosen = Distillation(features=0.01)
        with pytest.raises(PruningError, match=r"what conv\d returns, which is computed without gradients"):
            fitted(tmp_path, Rerun(), PruningCallback(SPARSE, distillation=chosen))
