"""MLP, ResNet, FT-Transformer and Mambular classifiers on a table, as in deeptab's quick start."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from deeptab.configs import FTTransformerConfig, MambularConfig
from deeptab.models import FTTransformerClassifier, MambularClassifier, MLPClassifier, ResNetClassifier
from sklearn.datasets import make_classification
from torch import nn

from projects.common import Case, run

FEATURES, TARGET = make_classification(n_samples=500, n_features=6, n_informative=4, random_state=0)
TABLE = pd.DataFrame(FEATURES, columns=[f"number_{i}" for i in range(6)])


class Tabular(Case):
    """A classifier: callbacks are keyword arguments of ``fit``, handed on to the Trainer."""

    def __init__(self, name: str, kind: Any, config: Any = None) -> None:
        self.name, self.kind, self.config = name, kind, config

    def fit(self, callbacks: list[Any], folder: Path) -> Any:
        """Fit, with a share of the rows held out."""
        model = self.kind(model_config=self.config)
        model.fit(TABLE, TARGET, max_epochs=3, batch_size=64, callbacks=callbacks, accelerator="cpu", logger=False)
        return model

    def network(self, fitted: Any) -> nn.Module:
        """Return the LightningModule."""
        return fitted._task_model

    def reload(self, fitted: Any, folder: Path) -> Any:
        """By ``save`` and ``load``."""
        fitted.save(str(folder / "model.deeptab"))
        return self.kind.load(str(folder / "model.deeptab"))

    def predict(self, fitted: Any) -> Any:
        """Return the probabilities."""
        return fitted.predict_proba(TABLE)


if __name__ == "__main__":
    cases = [
        Tabular("MLP", MLPClassifier),
        Tabular("ResNet", ResNetClassifier),
        Tabular("FTTransformer", FTTransformerClassifier, FTTransformerConfig(d_model=32, n_layers=2, n_heads=4)),
        Tabular("Mambular", MambularClassifier, MambularConfig(d_model=32, n_layers=1, d_state=16)),
    ]
    run("deeptab", version("deeptab"), cases)
