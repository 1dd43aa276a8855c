"""What a dense model teaches a pruned one, as a value."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_prune.values import Choice, check_number, check_whole


@dataclass(frozen=True, kw_only=True)
class Distillation(Choice):
    """What the teacher adds to the loss of training.

    loss = (1 - weight) * own + weight * T^2 KL(softmax(t / T) || softmax(s / T)) + features * matching

    with the module's own loss, the logits t of the teacher and s of the student, T the temperature, and the matching
    of feature maps as :func:`feature_loss` defines it. The teacher is in eval mode and gets no gradients.

    Args:
        temperature: T, above 0; higher values show more of what the teacher thinks of the other classes.
        weight: share of the teacher's logits in the loss, in [0, 1].
        features: weight of the feature matching, 0 or more.
        teacher: a trained module that takes the student's inputs; it is copied, and stays as it is. None: the dense
            model, as it is when the fit starts.
        module: path of the submodule whose outputs are compared, for a module that does not call ``self(…)`` in
            ``training_step``; None: the LightningModule itself, or the submodule that holds all of its parameters.
        logits: takes the logits out of what that module returns; None: it returns them.
        axis: of the classes in the logits: 1 as in ``cross_entropy``, -1 for (batch, time, classes).

    Source:
        Hinton, Vinyals and Dean 2015, "Distilling the Knowledge in a Neural Network", section 2, with the factor T^2
        that they give for it; Romero et al. 2015, "FitNets", for feature maps. We need no regressor: what is left of a
        pruned layer are channels of the dense one.

    Example:
        >>> Distillation(temperature=4.0, weight=0.5).describe()["weight"]
        '0.5'
    """

    temperature: float = 4.0
    weight: float = 0.5
    features: float = 0.0
    teacher: nn.Module | None = None
    module: str | None = None
    logits: Callable[[Any], Any] | None = None
    axis: int = 1

    def __post_init__(self) -> None:
        check_number("Distillation.temperature", self.temperature, above=0)
        check_number("Distillation.weight", self.weight, 0, 1)
        check_number("Distillation.features", self.features, 0)
        if self.weight == 0 and self.features == 0:
            raise ValueError("Distillation with weight 0 and features 0 teaches nothing; raise one, or leave it out")
        if self.teacher is not None and not isinstance(self.teacher, nn.Module):
            raise TypeError(f"Distillation.teacher must be a module or None, got {self.teacher!r:.80}")
        if self.module is not None and not isinstance(self.module, str):
            raise TypeError(f'Distillation.module must be the path of a submodule, such as "net", got {self.module!r}')
        if self.logits is not None and not callable(self.logits):
            raise TypeError(f"Distillation.logits must be a function of what forward returns, got {self.logits!r}")
        check_whole("Distillation.axis", self.axis)

    def describe(self) -> dict[str, str]:
        """Return what changes the training, as text, which a checkpoint keeps; the teacher is told by its digest."""
        numbers = {
            "temperature": float(self.temperature),
            "weight": float(self.weight),
            "features": float(self.features),
        }
        return {name: repr(value) for name, value in (numbers | {"module": self.module, "axis": self.axis}).items()}

    def logits_in(self, output: object) -> Tensor:
        """Return the logits in what a module returned.

        Raises:
            TypeError: there is no tensor of floats.
            ValueError: fewer than two classes lie along the axis.
        """
        found = output if self.logits is None else self.logits(output)
        if not isinstance(found, Tensor) or not found.is_floating_point():
            raise TypeError(
                f"Distillation compares logits, and got {type(found).__name__}; let logits= take them out of what the"
                " module returns, such as lambda output: output.logits"
            )
        if not -found.dim() <= self.axis < found.dim() or found.shape[self.axis] < 2:
            raise ValueError(
                f"the outputs have shape {tuple(found.shape)}, which has no two classes along axis {self.axis}; set"
                " Distillation(axis=…), or weight=0 and features above 0"
            )
        return found


torch.serialization.add_safe_globals([Distillation])
