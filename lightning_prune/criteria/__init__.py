"""Which weights matter: parameters -> scores, higher = keep."""

from lightning_prune.criteria.activations import Wanda
from lightning_prune.criteria.gradients import Fisher, Taylor
from lightning_prune.criteria.observations import Observations
from lightning_prune.criteria.samples import Run, SampleCriterion, Seen
from lightning_prune.criteria.scores import Scores
from lightning_prune.criteria.watching import (
    ActivationCriterion,
    GradientCriterion,
    ObservingCriterion,
    scorable,
    watch,
    watched,
)
from lightning_prune.criteria.weights import CHUNK, Criterion, Magnitude, Random

BUILT_IN = (Magnitude, Random, Taylor, Fisher, Wanda)
"""What a recipe names, and a checkpoint may hold."""

__all__ = [
    "BUILT_IN",
    "CHUNK",
    "ActivationCriterion",
    "Criterion",
    "Fisher",
    "GradientCriterion",
    "Magnitude",
    "Observations",
    "ObservingCriterion",
    "Random",
    "Run",
    "SampleCriterion",
    "Scores",
    "Seen",
    "Taylor",
    "Wanda",
    "scorable",
    "watch",
    "watched",
]
