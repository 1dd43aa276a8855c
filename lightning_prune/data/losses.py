"""The loss of a model on a batch, without a Trainer."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.loss import _Loss

from lightning_prune.errors import NonFiniteError
from lightning_prune.model.plain_copy import plain_copy
from lightning_prune.trainer.internals import is_param_in_hook_signature
from lightning_prune.trainer.packages import is_lightning_module

Loss = Callable[[nn.Module, Any], Tensor]
"""``loss(model, batch) -> scalar``."""


def check_loss(model: nn.Module, loss: Loss | None) -> None:
    """Refuse a model whose loss is not known.

    Raises:
        TypeError: the loss cannot be called.
        ValueError: there is no loss, and the model is no LightningModule that returns one from ``training_step``.
    """
    name = type(model).__name__
    if loss is not None:
        if not callable(loss):
            raise TypeError(f"loss must be a function loss(model, batch) -> scalar, got {loss!r:.80}")
        if isinstance(loss, _Loss):
            raise TypeError(
                f"loss is called as loss(model, batch), and {loss!r:.80} takes outputs and targets: write loss=lambda"
                " model, batch: criterion(model(batch[0]), batch[1]), with criterion for it"
            )
        return
    if not is_lightning_module(model):
        raise ValueError(f"{name} is no LightningModule, so its loss is not known: pass loss=lambda model, batch: …")
    if not model.automatic_optimization:
        raise ValueError(
            f"{name} optimizes by hand (automatic_optimization=False), so its training_step takes optimizer steps:"
            " pass loss=lambda model, batch: …, which returns the loss alone"
        )


def trainless_copy(model: nn.Module) -> nn.Module:
    """Return a copy in eval mode that can run ``training_step`` without a Trainer.

    Whatever a step changes, such as metrics and lists that it appends to, changes the copy. ``self.log`` and
    ``self.log_dict`` do nothing there. Batch norm takes its running statistics and dropout is off.
    """
    copied = plain_copy(model).eval()
    for module in copied.modules():
        if is_lightning_module(module):
            module.__dict__["log"] = module.__dict__["log_dict"] = _log_nothing
    return copied


def _log_nothing(*_: object, **__: object) -> None:
    """Stand where ``self.log`` stands."""


def loss_of(model: nn.Module, batch: Any, index: int, loss: Loss | None) -> Tensor:  # noqa: ANN401
    """Return the loss of one batch: of ``loss``, or of the model's own ``training_step``.

    Args:
        model: as :func:`trainless_copy` returns it, where ``loss`` is None.
        batch: on the model's device.
        index: number of the batch.
        loss: None for the model's own.

    Raises:
        ValueError: no scalar came back, or ``training_step`` asks for its Trainer.
        NonFiniteError: it is NaN or infinite.
    """
    source = "loss(model, batch)" if loss is not None else "training_step"
    if loss is not None:
        value = loss(model, batch)
    elif is_lightning_module(model):
        takes_index = is_param_in_hook_signature(model.training_step, "batch_idx", min_args=2)
        try:
            value = model.training_step(batch, index) if takes_index else model.training_step(batch)
        except RuntimeError as error:
            if "not attached to a `Trainer`" not in str(error):
                raise
            raise ValueError(
                f"training_step of {type(model).__name__} asks for its Trainer, and there is none here: pass"
                " loss=lambda model, batch: …"
            ) from error
        value = value.get("loss") if isinstance(value, Mapping) else value
    else:
        raise TypeError(f"{type(model).__name__} is no LightningModule: pass loss=lambda model, batch: …")
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
        raise ValueError(f"{source} returned {got:.120} for batch {index}; it must return a scalar tensor")
    if not bool(torch.isfinite(value.detach())):
        raise NonFiniteError(f"{source} returned {float(value.detach())} for batch {index}; look at weights and data")
    return value.squeeze()


def differentiable(loss: Tensor, index: int) -> Tensor:
    """Return the loss of a batch.

    Raises:
        ValueError: no gradient flows from it.
    """
    if not loss.requires_grad:
        raise ValueError(
            f"the loss of batch {index} does not depend on any weight that is trained; let it come from the model's"
            " outputs, without detach() or torch.no_grad()"
        )
    return loss
