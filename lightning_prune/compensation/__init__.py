"""What is kept takes over for what goes."""

from lightning_prune.compensation.inputs import Call, LastInputs
from lightning_prune.compensation.least_squares import LeastSquares
from lightning_prune.compensation.reconstruction import Reconstruction
from lightning_prune.compensation.repair import Repair, Wanted, joined, record, refit

BUILT_IN = (LeastSquares, Reconstruction)
"""What a recipe names, and a checkpoint may hold."""

__all__ = [
    "BUILT_IN",
    "Call",
    "LastInputs",
    "LeastSquares",
    "Reconstruction",
    "Repair",
    "Wanted",
    "joined",
    "record",
    "refit",
]
