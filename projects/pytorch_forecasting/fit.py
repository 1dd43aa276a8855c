"""N-BEATS, the temporal fusion transformer and DeepAR on generated series, as the tutorials of pytorch-forecasting."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import EarlyStopping
from pytorch_forecasting import DeepAR, NBeats, TemporalFusionTransformer, TimeSeriesDataSet
from pytorch_forecasting.data import NaNLabelEncoder
from pytorch_forecasting.data.examples import generate_ar_data
from pytorch_forecasting.metrics import MultivariateNormalDistributionLoss, QuantileLoss

from projects.common import Case, run

BRANCHES = "its forward branches on the lengths in the batch, which torch.export cannot record"


class Forecasting(Case):
    """What the three tutorials have in common."""

    sampler: str | None = None
    kind: Any
    dataset: dict[str, Any]
    options: dict[str, Any]

    def fit(self, callbacks: list[Any], folder: Path) -> Any:
        """Build the model from the data set, train, keep the best."""
        data = generate_ar_data(seasonality=10.0, timesteps=100, n_series=20)
        data["series"] = data.series.astype(str)
        cutoff = data["time_idx"].max() - 10
        training = TimeSeriesDataSet(
            data[lambda x: x.time_idx <= cutoff],
            time_idx="time_idx",
            target="value",
            categorical_encoders={"series": NaNLabelEncoder().fit(data.series)},
            group_ids=["series"],
            max_encoder_length=30,
            max_prediction_length=10,
            **self.dataset,
        )
        validation = TimeSeriesDataSet.from_dataset(training, data, min_prediction_idx=cutoff + 1)
        loading = {"batch_size": 64, "num_workers": 0, "batch_sampler": self.sampler}
        train = training.to_dataloader(train=True, **loading)
        self.validation = validation.to_dataloader(train=False, **loading)
        early_stop_callback = EarlyStopping(monitor="val_loss", min_delta=1e-4, patience=10, verbose=False, mode="min")
        self.trainer = pl.Trainer(
            max_epochs=2,
            accelerator="cpu",
            gradient_clip_val=0.1,
            callbacks=[early_stop_callback, *callbacks],
            limit_train_batches=15,
            enable_checkpointing=True,
            enable_progress_bar=False,
            logger=False,
        )
        model = self.kind.from_dataset(training, **self.options)
        self.trainer.fit(model, train_dataloaders=train, val_dataloaders=self.validation)
        return model

    def reload(self, fitted: Any, folder: Path) -> Any:
        """Through a checkpoint, as the tutorials do."""
        self.trainer.save_checkpoint(folder / "small.ckpt")
        return self.kind.load_from_checkpoint(folder / "small.ckpt", weights_only=False)

    def predict(self, fitted: Any) -> Any:
        """Forecast the validation series."""
        return fitted.predict(self.validation, trainer_kwargs={"accelerator": "cpu", "logger": False})


class NBeatsCase(Forecasting):
    """Tutorial "Interpretable forecasting with N-Beats"."""

    name = "N-BEATS"
    kind = NBeats
    dataset = {
        "min_encoder_length": 30,
        "min_prediction_length": 10,
        "time_varying_unknown_reals": ["value"],
    }
    options = {"learning_rate": 3e-2, "weight_decay": 1e-2, "widths": [32, 64], "backcast_loss_ratio": 0.1}


class TemporalFusionTransformerCase(Forecasting):
    """Tutorial "Demand forecasting with the Temporal Fusion Transformer"."""

    name = "Temporal Fusion Transformer"
    reasons = {"fit": f"{BRANCHES}; `Element` does it", "pte": BRANCHES}
    kind = TemporalFusionTransformer
    dataset = {
        "min_encoder_length": 15,
        "min_prediction_length": 1,
        "static_categoricals": ["series"],
        "time_varying_known_reals": ["time_idx"],
        "time_varying_unknown_reals": ["value"],
        "add_relative_time_idx": True,
        "add_target_scales": True,
        "add_encoder_length": True,
    }
    options = {
        "learning_rate": 0.03,
        "hidden_size": 16,
        "attention_head_size": 2,
        "dropout": 0.1,
        "hidden_continuous_size": 8,
        "loss": QuantileLoss(),
        "reduce_on_plateau_patience": 4,
    }


class DeepARCase(Forecasting):
    """Tutorial "Autoregressive modelling with DeepAR and DeepVAR"."""

    name = "DeepAR"
    reasons = {"fit": f"{BRANCHES}; `Element` does it", "pte": BRANCHES}
    kind = DeepAR
    sampler = "synchronized"
    dataset = {
        "static_categoricals": ["series"],
        "time_varying_unknown_reals": ["value"],
        "time_varying_known_reals": ["time_idx"],
    }
    options = {
        "learning_rate": 0.1,
        "hidden_size": 30,
        "rnn_layers": 2,
        "loss": MultivariateNormalDistributionLoss(rank=10),
        "optimizer": "adam",
    }


if __name__ == "__main__":
    run(
        "pytorch-forecasting",
        version("pytorch-forecasting"),
        [NBeatsCase(), TemporalFusionTransformerCase(), DeepARCase()],
    )
