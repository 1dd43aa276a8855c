"""What is kept takes over for what goes."""

from lightning_prune.compensation.least_squares import LeastSquares
from lightning_prune.compensation.repair import Repair, Target, joined, record, refit

__all__ = ["LeastSquares", "Repair", "Target", "joined", "record", "refit"]
