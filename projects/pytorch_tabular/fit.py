"""Category embedding, FT-Transformer and GANDALF on a table, as in PyTorch Tabular's basic tutorial."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from pytorch_tabular import TabularModel
from pytorch_tabular.config import DataConfig, OptimizerConfig, TrainerConfig
from pytorch_tabular.models import CategoryEmbeddingModelConfig, FTTransformerConfig, GANDALFConfig
from sklearn.datasets import make_classification
from torch import nn

from projects.common import Case, run

FEATURES, TARGET = make_classification(n_samples=600, n_features=8, n_informative=5, random_state=0)
NUMBERS = [f"number_{i}" for i in range(6)]
TABLE = pd.DataFrame(FEATURES[:, :6], columns=NUMBERS)
TABLE["category_0"] = pd.cut(FEATURES[:, 6], 5, labels=list("abcde")).astype(str)
TABLE["category_1"] = pd.cut(FEATURES[:, 7], 4, labels=list("wxyz")).astype(str)
TABLE["target"] = TARGET
TRAIN, VALIDATION = TABLE[:480], TABLE[480:]

FT = {"input_embed_dim": 16, "num_heads": 4, "num_attn_blocks": 2}
QUIET = "attn_feature_importance"
ARRAYS = f"its forward makes NumPy arrays of its attention, unless `{QUIET}=False`"
WIDTH = "every width in it is the number of features that go in"


class Tabular(Case):
    """A TabularModel: callbacks are an argument of ``fit``."""

    def __init__(self, name: str, config: Any, why: str = "", **options: Any) -> None:
        self.name, self.config, self.options = name, config, options
        self.reasons = {"fit": why, "pte": why} if why else {}

    def fit(self, callbacks: list[Any], folder: Path) -> Any:
        """Put the configurations together and fit."""
        model = TabularModel(
            data_config=DataConfig(
                target=["target"],
                continuous_cols=NUMBERS,
                categorical_cols=["category_0", "category_1"],
            ),
            model_config=self.config(task="classification", learning_rate=1e-3, **self.options),
            optimizer_config=OptimizerConfig(),
            trainer_config=TrainerConfig(
                batch_size=32,
                max_epochs=2,
                accelerator="cpu",
                progress_bar="none",
                checkpoints_path=str(folder / "saved_models"),
            ),
            verbose=False,
        )
        model.fit(train=TRAIN, validation=VALIDATION, callbacks=callbacks)
        return model

    def network(self, fitted: Any) -> nn.Module:
        """Return the LightningModule."""
        return fitted.model

    def reload(self, fitted: Any, folder: Path) -> Any:
        """By ``save_model`` and ``load_model``."""
        fitted.save_model(str(folder / "saved"))
        return TabularModel.load_model(str(folder / "saved"))

    def predict(self, fitted: Any) -> Any:
        """Return the probabilities."""
        return fitted.predict(VALIDATION).filter(like="probability").to_numpy()


if __name__ == "__main__":
    cases = [
        Tabular("CategoryEmbedding", CategoryEmbeddingModelConfig, layers="64-32", activation="ReLU"),
        Tabular("FTTransformer", FTTransformerConfig, ARRAYS, **FT),
        Tabular(
            "FTTransformer, attn_feature_importance=False", FTTransformerConfig, attn_feature_importance=False, **FT
        ),
        Tabular("GANDALF", GANDALFConfig, WIDTH, gflu_stages=3),
    ]
    run("pytorch-tabular", version("pytorch_tabular"), cases)
