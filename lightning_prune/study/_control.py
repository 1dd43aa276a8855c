"""The control of every comparison: a small dense network of the same cost, trained from scratch."""

from torch import nn

from lightning_prune.compaction.finalization import finalize
from lightning_prune.criteria import Random
from lightning_prune.model.example import example_of
from lightning_prune.recipe import Recipe
from lightning_prune.run.binding import bind
from lightning_prune.run.pruner import prune_step
from lightning_prune.schedules import OneShot
from lightning_prune.selection.allocation import Uniform
from lightning_prune.selection.granularity import Channel


def small_dense(model: nn.Module, count: str, share: float) -> nn.Module:
    """Make an untrained network smaller: the same share of every channel group goes, and all layers start afresh.

    Layers that know how (``reset_parameters``) draw their weights anew for their new widths; parameters of other
    modules keep their first values, so the model must be untrained.

    Args:
        model: untrained, with an ``example_input_array``.
        count: "macs" or "params".
        share: of that which goes at least, in (0, 1); the widths are the widest that meet it.

    Returns:
        the same model.

    Raises:
        ValueError: no channel can go, or not so many.

    Changes:
        shapes and weights, in place.

    Source:
        Zhu & Gupta 2018, "To prune, or not to prune", who compare large sparse with small dense networks.
    """
    if count not in ("macs", "params"):
        raise ValueError(f'small_dense counts "macs" or "params", got {count!r}')
    inputs = example_of(model)
    recipe = Recipe(
        granularity=Channel(), criterion=Random(), allocation=Uniform(), schedule=OneShot(share),
        count="macs" if count == "macs" else "params",
    )  # fmt: skip
    pruner = bind(recipe, model, inputs)
    pruner.attach(model)
    prune_step(pruner, model, share)
    finalize(model, inputs)
    for module in model.modules():
        # torch's own convention, which no base class states
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()
    return model
