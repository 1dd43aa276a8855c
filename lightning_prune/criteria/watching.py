"""Criteria that must watch the run: gradients or the inputs of layers, averaged over the steps since the last event."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils.hooks import RemovableHandle

from lightning_prune.model.masks import dense_parameters, first_names


class ObservingCriterion(ABC):
    """What gradient and activation criteria share: a mean over the steps, and a score made from it at the event."""

    watches: str
    """What it watches, in words, for messages."""
    stays_finite: ClassVar[bool] = False
    """Whether finite weights have finite scores, so that nobody need look."""

    def score(self, weight: Tensor, mean: Tensor) -> Tensor:
        """Return the scores from the weights as they are now and the mean of what was observed.

        Element by element, for it may be called with pieces: all three are of one shape. The default is the mean.
        """
        return mean


class GradientCriterion(ObservingCriterion):
    """A criterion that watches the gradients of training: its score is the mean of :meth:`observe` over the steps.

    A subclass may make the score from that mean and the weight, see :meth:`score`.
    """

    watches = "gradient"

    @abstractmethod
    def observe(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """Return what one optimizer step says about each weight.

        Args:
            weight: the parameter before the step, any shape.
            gradient: the gradient of the loss, same shape: unscaled, before clipping, averaged over ranks.
        """


class ActivationCriterion(ObservingCriterion):
    """A criterion that watches what enters each Linear and convolution while the network trains.

    Its score is made from the mean of :meth:`observe` over the forward passes. Other parameters, such as biases and
    batch-norm entries, meet no activation in a product: they do not score.
    """

    watches = "input"

    @abstractmethod
    def observe(self, layer: nn.Module, inputs: Tensor) -> Tensor:
        """Return what one forward pass says about each weight of a layer, shape of ``layer.weight``.

        Args:
            layer: an ``nn.Linear``, a convolution or a transposed convolution.
            inputs: its input, without history, float32 or wider.
        """


def watched(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield (first dense name of the weight, layer) of each layer whose inputs an activation criterion can see.

    The output projection of ``nn.MultiheadAttention`` is none: its weight is read without a call.
    """
    first = first_names(model)
    inside = {module.out_proj for module in model.modules() if isinstance(module, nn.MultiheadAttention)}
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear | _ConvNd) and module not in inside:
            yield first[f"{path}.weight" if path else "weight"], module


def scorable(model: nn.Module, names: Iterable[str], criterion: object) -> dict[str, Tensor]:
    """Return the parameters whose scores count: the trainable ones; of an activation criterion those it can see.

    Args:
        model: dense or masked.
        names: dense names of those that may be pruned.
        criterion: that scores them.
    """
    parameters = dense_parameters(model)
    seen = dict(watched(model)) if isinstance(criterion, ActivationCriterion) else parameters
    return {name: parameters[name] for name in names if name in seen and parameters[name].requires_grad}


def watch(
    model: nn.Module, names: Container[str], see: Callable[[str, nn.Module, Tensor], None]
) -> list[RemovableHandle]:
    """Show what enters the layers of these weights from now on; removing the handles ends it.

    Args:
        model: of the layers.
        names: dense names of weights.
        see: see :class:`Watcher`.
    """
    named = [(layer, Watcher(see, name)) for name, layer in watched(model) if name in names]
    return [layer.register_forward_pre_hook(cast(Any, hook), with_kwargs=True) for layer, hook in named]


class Watcher:
    """A forward pre-hook that shows what enters a layer; copies and pickles of the layer show it to nobody.

    Args:
        see: called with dense name, layer and input of each forward pass that records gradients, so that an evaluation
            in between does not count.
        name: dense name of the layer's weight.
    """

    def __init__(self, see: Callable[[str, nn.Module, Tensor], None], name: str) -> None:
        self._see = see
        self._name = name

    @torch.compiler.disable
    def __call__(self, layer: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Show the input."""
        if torch.is_grad_enabled():
            self._see(self._name, layer, (*args, *kwargs.values())[0])

    def __reduce__(self) -> tuple[type["_Blind"], tuple[()]]:
        return _Blind, ()


class _Blind:
    """What stands in copies in place of a :class:`Watcher`."""

    def __call__(self, layer: nn.Module, args: object, kwargs: object) -> None:
        """Look away."""
