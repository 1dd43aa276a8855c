"""Figures go to the loggers that take figures, and to no other."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from packages import CSVLogger, Logger
from report_cases import fit, recipe

from lightning_prune import PruningCallback
from lightning_prune.study.report import History, Recorder, Report
from lightning_prune.study.report._figures import Axis, Line, Plot
from lightning_prune.study.report._loggers import to_loggers
from lightning_prune.tables import Table

FIGURE = Plot("Sparsity over steps", Axis("steps"), Axis("sparsity"), (Line("s", ((0, 0), (1, 1))),), Table((), ()))
TITLES = {
    *("pruning/sparsity_over_steps", "pruning/val_acc_over_steps", "pruning/val_loss_over_steps"),
    *("pruning/output_channels_per_layer", "pruning/weights_left_per_layer", "pruning/conv1", "pruning/conv2"),
}


def needs(*modules: str) -> pytest.MarkDecorator:
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")


@needs("tensorboard", "matplotlib")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard(tmp_path: Path) -> None:
    from packages import TensorBoardLogger
    from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-not-found]
        EventAccumulator,
    )

    logger = TensorBoardLogger(tmp_path)
    _, trainer = fit(tmp_path, Recorder(), PruningCallback(recipe()), logger=logger, log_every_n_steps=1)
    found = EventAccumulator(logger.log_dir).Reload()
    assert set(found.Tags()["images"]) == TITLES
    (image,) = found.Images("pruning/sparsity_over_steps")
    assert image.step == 10
    assert image.encoded_image_string.startswith(b"\x89PNG")
    assert Report.of(trainer).to_loggers([logger], step=11) == 1


@needs("wandb", "matplotlib")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb  # type: ignore[import-not-found]
    from packages import WandbLogger

    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    assert to_loggers([FIGURE], [logger], 3) == 1
    wandb.finish()
    assert len(list(tmp_path.rglob("media/images/pruning/*.png"))) == 1


def test_a_csv_file_takes_numbers_alone(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    fit(tmp_path, Recorder(), PruningCallback(recipe()), logger=logger, log_every_n_steps=1)
    assert {path.name for path in Path(logger.log_dir).iterdir()} == {"metrics.csv", "hparams.yaml"}
    assert "sparsity" in (Path(logger.log_dir) / "metrics.csv").read_text()


def test_a_logger_of_another_kind_is_left_alone() -> None:
    class Own(Logger):
        name = version = None  # type: ignore[assignment]

        def log_hyperparams(self, *_: Any, **__: Any) -> None: ...

        def log_metrics(self, *_: Any, **__: Any) -> None: ...

        @property
        def experiment(self) -> Any:
            raise AssertionError

    assert to_loggers([FIGURE], [Own()], 0) == 0
    assert to_loggers([], [Own()], 0) == 0
    assert Report(history=History(metrics={"a": ((1, 2.0),)})).to_loggers([Own()]) == 0


def test_without_matplotlib_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    from packages import WandbLogger

    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.warns(UserWarning, match=r"no figures are logged: .*pip install 'lightning-prune\[plots\]'"):
        assert to_loggers([FIGURE], [WandbLogger(save_dir=tmp_path, offline=True)], 0) == 0
