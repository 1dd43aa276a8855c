"""Criteria that watch the gradients of training."""

from dataclasses import dataclass

from torch import Tensor

from lightning_prune.criteria.watching import GradientCriterion


@dataclass(frozen=True)
class Taylor(GradientCriterion):
    """First-order effect on the loss of setting a weight to zero: the mean over the steps of (g w)^2.

    g is the gradient of the step's batch, w the weight. A channel's score is the sum over all its coupled weights.

    Source:
        Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning", equation 8, averaged over
        mini-batches as there. The 2017 paper takes |mean of g a| of activations a instead, which cancels signs within
        a batch and needs a normalisation layer by layer. We differ in summing the squares over a channel's
        weights (their equation 9 squares the sum over a gate's outputs), since the sum of g w over a convolution's
        weights before a batch norm vanishes.

    Example:
        >>> import torch
        >>> Taylor().observe(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 0.5]))
        tensor([9., 1.])
    """

    def observe(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """Return (g w)^2, shape of ``weight``."""
        return (gradient * weight).square()


@dataclass(frozen=True)
class Fisher(GradientCriterion):
    """Second-order effect on the loss of setting a weight to zero: w^2 F / 2, F the diagonal of the empirical Fisher.

    F is the mean over the steps of g^2, g the gradient of the step's batch; w is the weight at the event. Where a
    network is trained, F stands in for the diagonal of the Hessian. It differs from :class:`Taylor` by the weights
    alone: that one multiplies each step's gradient with the weight of its own step, so on fixed weights both rank
    alike. F of single samples needs batches of one.

    Source:
        Theis et al. 2018, "Faster gaze prediction with dense networks and Fisher pruning"; Singh & Alistarh 2020,
        "WoodFisher", of which this is the diagonal. The saliency w^2 H / 2 is LeCun et al. 1990, "Optimal Brain
        Damage".

    Example:
        >>> import torch
        >>> seen = Fisher().observe(torch.tensor([5.0]), torch.tensor([3.0]))
        >>> Fisher().score(torch.tensor([2.0]), seen)
        tensor([18.])
    """

    def observe(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """Return g^2, shape of ``weight``."""
        return gradient.square()

    def score(self, weight: Tensor, mean: Tensor) -> Tensor:
        """Return w^2 F / 2."""
        return weight.square() * mean / 2
