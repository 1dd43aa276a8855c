"""TCN, N-HiTS, Transformer and recurrent forecasting with darts, as in its user guide on torch forecasting models."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from darts.models import BlockRNNModel, NHiTSModel, TCNModel, TransformerModel
from darts.utils.timeseries_generation import gaussian_timeseries, linear_timeseries, sine_timeseries
from torch import nn

from projects.common import Case, run

SERIES = sine_timeseries(length=300, value_frequency=0.05) + linear_timeseries(length=300, end_value=1.0)
SERIES = (SERIES + gaussian_timeseries(length=300, std=0.1)).astype(np.float32)
TRAIN, VALIDATION = SERIES.split_before(0.8)
# its decoder runs once for each step of the output, and so does the program
SHORT = {"num_encoder_layers": 1, "num_decoder_layers": 1, "output_chunk_length": 3}


class Forecasting(Case):
    """A darts model: callbacks reach the Trainer by ``pl_trainer_kwargs``."""

    def __init__(self, name: str, kind: Any, **options: Any) -> None:
        self.name, self.kind, self.options = name, kind, options

    def fit(self, callbacks: list[Any], folder: Path) -> Any:
        """Fit on a series, with a second one for validation."""
        model = self.kind(
            input_chunk_length=24,
            n_epochs=3,
            random_state=42,
            pl_trainer_kwargs={"accelerator": "cpu", "callbacks": callbacks, "enable_progress_bar": False},
            **{"output_chunk_length": 12} | self.options,
        )
        model.fit(series=TRAIN, val_series=VALIDATION)
        return model

    def network(self, fitted: Any) -> nn.Module:
        """Return the LightningModule that darts made."""
        return fitted.model

    def reload(self, fitted: Any, folder: Path) -> Any:
        """By ``save`` and ``load``, which darts asks to trust a file that holds any callback."""
        fitted.save(str(folder / "model.pt"))
        return self.kind.load(str(folder / "model.pt"), trusted=True)

    def predict(self, fitted: Any) -> Any:
        """Forecast twelve steps."""
        return fitted.predict(n=12, series=TRAIN).values()


if __name__ == "__main__":
    cases = [
        Forecasting("TCN", TCNModel, num_filters=16, kernel_size=3, dropout=0.1),
        Forecasting("NHiTS", NHiTSModel, num_blocks=1, layer_widths=64),
        Forecasting("Transformer", TransformerModel, **SHORT, d_model=32, nhead=4, dim_feedforward=64),
        Forecasting("BlockRNN", BlockRNNModel, model="LSTM", hidden_dim=32, n_rnn_layers=2),
    ]
    run("darts", version("darts"), cases)
