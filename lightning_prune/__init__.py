"""Prune a model while Lightning trains it, remove what was pruned, and ship the result with ExecuTorch.

Each name is imported at its first use, so that who asks for a command's help or for a recipe alone does not wait for
Lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from lightning_prune._version import __version__

if TYPE_CHECKING:
    from lightning_prune.checkpoints.adopting import adopting, load
    from lightning_prune.classes.classes import keep_classes
    from lightning_prune.compaction import Compaction, compact
    from lightning_prune.compaction.finalization import finalize
    from lightning_prune.compensation import LeastSquares, NoRepair, Reconstruction
    from lightning_prune.criteria import (
        ActivationCriterion,
        Fisher,
        GradientCriterion,
        Magnitude,
        Random,
        SampleCriterion,
        Taylor,
        Wanda,
    )
    from lightning_prune.distillation import Distillation
    from lightning_prune.errors import PruningError
    from lightning_prune.graph import channel_groups
    from lightning_prune.guard import Guard
    from lightning_prune.model.recalibration import recalibrate
    from lightning_prune.model.summary import summarize
    from lightning_prune.optimizer.policies import Keep, LRRewind, Mask, Reset, Rewarm, RewindWeights
    from lightning_prune.recipe import Recipe
    from lightning_prune.run.record import history
    from lightning_prune.run.run import PruningRun
    from lightning_prune.schedules import Exponential, Iterative, Linear, OneCycle, OneShot, Polynomial
    from lightning_prune.selection.allocation import ERK, Candidates, FromSensitivity, Global, Uniform
    from lightning_prune.selection.granularity import Block, Channel, Element, Granularity, NOfM
    from lightning_prune.selection.needs import Each, Latency, MACs, Memory, Params, Size
    from lightning_prune.selection.targets import Targets
    from lightning_prune.study.advise import advise
    from lightning_prune.study.compare import compare
    from lightning_prune.study.report import Recorder, Report
    from lightning_prune.study.sensitivity import sensitivity
    from lightning_prune.study.significance import significance
    from lightning_prune.trained import prune, prune_each, rotate, rotate_heads
    from lightning_prune.trainer.callback import PruningCallback
    from lightning_prune.trainer.mixin import PruningMixin
    from lightning_prune.trainer.quantization_aware import QuantizationAware
    from lightning_prune.trainer.sparsity_checkpoint import SparsityCheckpoint

__all__ = [
    "ERK",
    "ActivationCriterion",
    "Block",
    "Candidates",
    "Channel",
    "Compaction",
    "Distillation",
    "Each",
    "Element",
    "Exponential",
    "Fisher",
    "FromSensitivity",
    "Global",
    "GradientCriterion",
    "Granularity",
    "Guard",
    "Iterative",
    "Keep",
    "LRRewind",
    "Latency",
    "LeastSquares",
    "Linear",
    "MACs",
    "Magnitude",
    "Mask",
    "Memory",
    "NOfM",
    "NoRepair",
    "OneCycle",
    "OneShot",
    "Params",
    "Polynomial",
    "PruningCallback",
    "PruningError",
    "PruningMixin",
    "PruningRun",
    "QuantizationAware",
    "Random",
    "Recipe",
    "Reconstruction",
    "Recorder",
    "Report",
    "Reset",
    "Rewarm",
    "RewindWeights",
    "SampleCriterion",
    "Size",
    "SparsityCheckpoint",
    "Targets",
    "Taylor",
    "Uniform",
    "Wanda",
    "__version__",
    "adopting",
    "advise",
    "channel_groups",
    "compact",
    "compare",
    "finalize",
    "history",
    "keep_classes",
    "load",
    "prune",
    "prune_each",
    "recalibrate",
    "rotate",
    "rotate_heads",
    "sensitivity",
    "significance",
    "summarize",
]
_HOMES = {
    "checkpoints.adopting": "adopting load",
    "classes.classes": "keep_classes",
    "compaction": "Compaction compact",
    "compaction.finalization": "finalize",
    "compensation": "LeastSquares NoRepair Reconstruction",
    "criteria": "ActivationCriterion Fisher GradientCriterion Magnitude Random SampleCriterion Taylor Wanda",
    "distillation": "Distillation",
    "errors": "PruningError",
    "graph": "channel_groups",
    "guard": "Guard",
    "model.recalibration": "recalibrate",
    "model.summary": "summarize",
    "optimizer.policies": "Keep LRRewind Mask Reset Rewarm RewindWeights",
    "recipe": "Recipe",
    "run.record": "history",
    "run.run": "PruningRun",
    "schedules": "Exponential Iterative Linear OneCycle OneShot Polynomial",
    "selection.allocation": "ERK Candidates FromSensitivity Global Uniform",
    "selection.granularity": "Block Channel Element Granularity NOfM",
    "selection.needs": "Each Latency MACs Memory Params Size",
    "selection.targets": "Targets",
    "study.advise": "advise",
    "study.compare": "compare",
    "study.report": "Recorder Report",
    "study.sensitivity": "sensitivity",
    "study.significance": "significance",
    "trained": "prune prune_each rotate rotate_heads",
    "trainer.callback": "PruningCallback",
    "trainer.mixin": "PruningMixin",
    "trainer.quantization_aware": "QuantizationAware",
    "trainer.sparsity_checkpoint": "SparsityCheckpoint",
}
"""Module -> the names that are taken from it; the same as type checkers read above."""


def __getattr__(name: str) -> object:
    home = next((home for home, names in _HOMES.items() if name in names.split()), None)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # these tell torch that our values may stand among the hyperparameters that it reads with weights_only=True
    for room in ("checkpoints.state", "distillation"):
        import_module(f"{__name__}.{room}")
    globals()[name] = found = getattr(import_module(f"{__name__}.{home}"), name)
    return found


def __dir__() -> list[str]:
    return __all__
