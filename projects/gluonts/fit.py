"""DeepAR, feed-forward, temporal fusion transformer and PatchTST estimators, as in the quick start of GluonTS."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from gluonts.dataset.pandas import PandasDataset
from gluonts.dataset.split import split
from gluonts.model.predictor import Predictor
from gluonts.torch import (
    DeepAREstimator,
    PatchTSTEstimator,
    SimpleFeedForwardEstimator,
    TemporalFusionTransformerEstimator,
)
from torch import nn

from projects.common import Case, run

MONTHS = pd.date_range("1990-01-01", periods=240, freq="MS")
VALUES = 100 + np.arange(240) + 30 * np.sin(np.arange(240) * np.pi / 6)
DATASET = PandasDataset(pd.DataFrame({"target": VALUES.astype(np.float32)}, index=MONTHS), target="target")
TRAINING, TEST = split(DATASET, offset=-36)
INPUTS = TEST.generate_instances(prediction_length=12, windows=3).input
SAMPLES = {"pte": "its forward draws samples, for which ExecuTorch has no operator"}


class Forecasting(Case):
    """An estimator: callbacks reach the Trainer by ``trainer_kwargs``."""

    remark = "steps of the schedule, since its data are iterable"
    begin, end, every = 10, 28, 6

    def __init__(self, name: str, kind: Any, reasons: Any = Case.reasons, **options: Any) -> None:
        self.name, self.kind, self.reasons, self.options = name, kind, reasons, options

    def fit(self, callbacks: list[Any], folder: Path) -> Any:
        """Train a predictor."""
        trainer = {"max_epochs": 2, "callbacks": callbacks, "accelerator": "cpu", "enable_progress_bar": False}
        estimator = self.kind(prediction_length=12, trainer_kwargs=trainer, num_batches_per_epoch=20, **self.options)
        return estimator.train(TRAINING)

    def network(self, fitted: Any) -> nn.Module:
        """Return the LightningModule inside of the predictor."""
        return fitted.network

    def example(self, fitted: Any, seen: Any) -> Any:
        """Return what the network describes, with values that were observed: training calls its loss, never forward."""
        inputs = dict(fitted.network.inputs.zeros())
        for name in {"past_target", "past_observed_values"} & inputs.keys():
            inputs[name] = torch.ones_like(inputs[name]) if "observed" in name else 0.5 + torch.rand(inputs[name].shape)
        return (), inputs

    def reload(self, fitted: Any, folder: Path) -> Any:
        """By ``serialize`` and ``deserialize``."""
        (folder / "saved").mkdir()
        fitted.serialize(folder / "saved")
        return Predictor.deserialize(folder / "saved")

    def predict(self, fitted: Any) -> Any:
        """Return the mean of each forecast."""
        return [forecast.mean for forecast in fitted.predict(INPUTS)]


if __name__ == "__main__":
    cases = [
        Forecasting("DeepAR", DeepAREstimator, SAMPLES, freq="M", hidden_size=32, num_layers=2),
        Forecasting("SimpleFeedForward", SimpleFeedForwardEstimator, hidden_dimensions=[32, 32]),
        Forecasting(
            "TemporalFusionTransformer", TemporalFusionTransformerEstimator, freq="M", hidden_dim=16, num_heads=2
        ),
        Forecasting("PatchTST", PatchTSTEstimator, patch_len=6, d_model=32, dim_feedforward=64),
    ]
    run("gluonts", version("gluonts"), cases)
