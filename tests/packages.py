"""Lightning as the tests name it: lightning.pytorch, or the package that the variable LIGHTNING_PACKAGE names."""

import os
from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

import pytest

NAME = os.environ.get("LIGHTNING_PACKAGE", "lightning.pytorch")
OTHER = {"lightning.pytorch": "pytorch_lightning", "pytorch_lightning": "lightning.pytorch"}[NAME]
VERSION = tuple(int(part) for part in metadata.version(NAME.removesuffix(".pytorch")).split(".")[:2])
SAFELY: dict[str, Any] = {"weights_only": True} if VERSION >= (2, 6) else {}
"""For load_from_checkpoint: read no pickled objects, which older versions cannot be told."""

if TYPE_CHECKING:
    import lightning.pytorch as L
    from lightning.fabric.plugins import TorchCheckpointIO
    from lightning.pytorch.callbacks import (
        BackboneFinetuning,
        BatchSizeFinder,
        Callback,
        EarlyStopping,
        EMAWeightAveraging,
        LearningRateFinder,
        ModelCheckpoint,
        ModelPruning,
        StochasticWeightAveraging,
        Timer,
        TQDMProgressBar,
        WeightAveraging,
    )
    from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
    from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
    from lightning.pytorch.tuner.tuning import Tuner
else:
    L = import_module(NAME)
    fabric = {"lightning.pytorch": "lightning.fabric", "pytorch_lightning": "lightning_fabric"}[NAME]
    TorchCheckpointIO = import_module(f"{fabric}.plugins").TorchCheckpointIO
    Tuner = import_module(f"{NAME}.tuner").Tuner
    for part in ("callbacks", "loggers", "strategies"):
        module = import_module(f"{NAME}.{part}")
        globals().update({name: getattr(module, name) for name in module.__all__})
    if VERSION < (2, 6):

        def WeightAveraging(**_: Any) -> None:
            pytest.skip("Lightning before 2.6 has no WeightAveraging")

        EMAWeightAveraging = WeightAveraging

__all__ = [
    "NAME",
    "OTHER",
    "SAFELY",
    "VERSION",
    "BackboneFinetuning",
    "BatchSizeFinder",
    "CSVLogger",
    "Callback",
    "DDPStrategy",
    "EMAWeightAveraging",
    "EarlyStopping",
    "L",
    "LearningRateFinder",
    "Logger",
    "ModelCheckpoint",
    "ModelParallelStrategy",
    "ModelPruning",
    "StochasticWeightAveraging",
    "TQDMProgressBar",
    "TensorBoardLogger",
    "Timer",
    "TorchCheckpointIO",
    "Trainer",
    "Tuner",
    "WandbLogger",
    "WeightAveraging",
]


class Trainer(L.Trainer):
    """Takes ``weights_only`` in all versions; those before 2.6 read whatever there is."""

    if not TYPE_CHECKING and VERSION < (2, 6):

        def fit(self, *args: Any, weights_only: object = None, **options: Any) -> None:
            super().fit(*args, **options)

        def validate(self, *args: Any, weights_only: object = None, **options: Any) -> Any:
            return super().validate(*args, **options)

        def test(self, *args: Any, weights_only: object = None, **options: Any) -> Any:
            return super().test(*args, **options)

        def predict(self, *args: Any, weights_only: object = None, **options: Any) -> Any:
            return super().predict(*args, **options)
