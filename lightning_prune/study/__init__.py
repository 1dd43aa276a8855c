"""Looks at a model and changes nothing: what matters, what a layer stands, which recipe wins, whether to prune."""

from lightning_prune.study.advise import Advice, Finding, advise
from lightning_prune.study.compare import compare
from lightning_prune.study.comparison import Comparison, Row
from lightning_prune.study.curve import Sensitivity
from lightning_prune.study.deletion import Deletion
from lightning_prune.study.runners import InTurn, Processes, RayTune
from lightning_prune.study.sensitivity import sensitivity
from lightning_prune.study.significance import Significance, significance
from lightning_prune.study.tried import Attempt, Tried

__all__ = [
    "Advice",
    "Attempt",
    "Comparison",
    "Deletion",
    "Finding",
    "InTurn",
    "Processes",
    "RayTune",
    "Row",
    "Sensitivity",
    "Significance",
    "Tried",
    "advise",
    "compare",
    "sensitivity",
    "significance",
]
