"""LSTM, NHITS, TCN and iTransformer on the air passengers that neuralforecast ships, as in its quick start."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

from neuralforecast import NeuralForecast
from neuralforecast.models import LSTM, NHITS, TCN, PatchTST
from neuralforecast.utils import AirPassengersDF
from torch import nn

from projects.common import Case, run

HORIZON = 12


class Forecasting(Case):
    """A model inside of NeuralForecast: callbacks are keyword arguments of the model, handed on to its Trainer."""

    every = 5

    def __init__(self, name: str, kind: Any, **options: Any) -> None:
        self.name, self.kind, self.options = name, kind, options

    def fit(self, callbacks: list[Any], folder: Path) -> Any:
        """Fit one model."""
        model = self.kind(
            h=HORIZON,
            input_size=2 * HORIZON,
            max_steps=40,
            accelerator="cpu",
            callbacks=callbacks,
            enable_progress_bar=False,
            **self.options,
        )
        nf = NeuralForecast(models=[model], freq="ME")
        nf.fit(df=AirPassengersDF)
        return nf

    def network(self, fitted: Any) -> nn.Module:
        """Return the model that was trained, a copy of the user's."""
        return fitted.models[0]

    def reload(self, fitted: Any, folder: Path) -> Any:
        """By ``save`` and ``load``."""
        fitted.save(path=str(folder / "saved"), overwrite=True, save_dataset=True)
        return NeuralForecast.load(path=str(folder / "saved"))

    def predict(self, fitted: Any) -> Any:
        """Forecast the year after."""
        return fitted.predict().drop(columns=["unique_id", "ds"]).to_numpy()


if __name__ == "__main__":
    cases = [
        Forecasting("LSTM", LSTM, encoder_hidden_size=32, decoder_hidden_size=32),
        Forecasting("NHITS", NHITS, mlp_units=3 * [[64, 64]]),
        Forecasting("TCN", TCN, encoder_hidden_size=32, decoder_hidden_size=32),
        Forecasting("PatchTST", PatchTST, hidden_size=32, n_heads=4, encoder_layers=2, patch_len=6, stride=3),
    ]
    run("neuralforecast", version("neuralforecast"), cases)
