"""The terms that a teacher adds to a loss; pure tensor maths."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax


def soft_target_loss(student: Tensor, teacher: Tensor, temperature: float, axis: int = 1) -> Tensor:
    """Return T^2 KL(softmax(t / T) || softmax(s / T)), summed over the classes, averaged over all other axes.

    Args:
        student: logits s, shape (batch, classes, …).
        teacher: logits t, same shape.
        temperature: T, above 0.
        axis: of the classes.

    Returns:
        A scalar, float32 or wider, 0 where both are alike up to a constant.

    Source:
        Hinton, Vinyals and Dean 2015, section 2; T^2 keeps the size of the gradients when T changes.

    Example:
        >>> float(soft_target_loss(torch.tensor([[2.0, 0.0]]), torch.tensor([[3.0, 1.0]]), 4.0))
        0.0
    """
    wide = torch.promote_types(student.dtype, torch.float32)
    ours = log_softmax(student.to(wide) / temperature, axis)
    theirs = log_softmax(teacher.to(wide) / temperature, axis)
    return temperature**2 * kl_div(ours, theirs, reduction="none", log_target=True).sum(axis).mean()


def feature_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Return the mean over the layers of |s - t|^2 / |t|^2: 0 where they are alike, 1 where the student is silent.

    Args:
        student: feature maps s of each layer, any shapes.
        teacher: those of the teacher t, the same shapes.

    Returns:
        A scalar, float32 or wider. A layer whose teacher is silent counts with a divisor of 1e-12 per entry.

    Example:
        >>> float(feature_loss([torch.tensor([3.0, 0.0])], [torch.tensor([3.0, 4.0])]))
        0.64
    """
    terms = []
    for ours, theirs in zip(student, teacher, strict=True):
        wide = torch.promote_types(ours.dtype, torch.float32)
        error = (ours.to(wide) - theirs.to(wide)).square().mean()
        terms.append(error / theirs.to(wide).square().mean().clamp_min(1e-12))
    return torch.stack(terms).mean()
