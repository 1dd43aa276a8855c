"""Prune a model while Lightning trains it, remove what was pruned, and ship the result with ExecuTorch."""

from lightning_prune._version import __version__
from lightning_prune.classes.classes import keep_classes
from lightning_prune.compaction import Compaction, compact
from lightning_prune.compaction.finalization import finalize
from lightning_prune.criteria import (
    ActivationCriterion,
    Fisher,
    GradientCriterion,
    Magnitude,
    Random,
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
from lightning_prune.schedules import Exponential, Iterative, Linear, OneCycle, OneShot, Polynomial
from lightning_prune.selection.allocation import ERK, Candidates, FromSensitivity, Global, Uniform
from lightning_prune.selection.granularity import Block, Channel, Element, Granularity, NOfM
from lightning_prune.selection.targets import Targets
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
    "Linear",
    "Magnitude",
    "Mask",
    "NOfM",
    "OneCycle",
    "OneShot",
    "Polynomial",
    "PruningCallback",
    "PruningError",
    "PruningMixin",
    "QuantizationAware",
    "Random",
    "Recipe",
    "Reset",
    "Rewarm",
    "RewindWeights",
    "SparsityCheckpoint",
    "Targets",
    "Taylor",
    "Uniform",
    "Wanda",
    "__version__",
    "channel_groups",
    "compact",
    "finalize",
    "keep_classes",
    "recalibrate",
    "summarize",
]
