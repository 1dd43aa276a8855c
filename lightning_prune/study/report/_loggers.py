"""Figures to the Trainer's loggers, those that take figures."""

import re
import warnings
from collections.abc import Sequence
from typing import Any

from lightning_prune.study.report._canvas import picture
from lightning_prune.study.report._figures import Figure
from lightning_prune.trainer.packages import Logger, kinds


def to_loggers(figures: Sequence[Figure], loggers: Sequence[Logger], step: int) -> int:
    """Write figures to the loggers that take some: TensorBoard, W&B, MLflow and Comet; a CSV file takes numbers alone.

    Args:
        figures: what to write.
        loggers: any loggers; others than these are left alone, since nothing says how they take a figure.
        step: completed optimizer steps.

    Returns:
        how many loggers took the figures.
    """
    names = ("TensorBoardLogger", "WandbLogger", "MLFlowLogger", "CometLogger")
    board, wandb, mlflow, comet = (kinds(f"loggers.{name}") for name in names)
    taking: list[Any] = [logger for logger in loggers if isinstance(logger, board + wandb + mlflow + comet)]
    if not taking or not figures:
        return 0
    titles = [re.sub(r"[^\w.\-]+", "_", figure.title.lower()).strip("_") for figure in figures]
    try:
        drawn: dict[str, Any] = {f"pruning/{t}": picture(f) for t, f in zip(titles, figures, strict=True)}
    except ImportError as error:
        warnings.warn(f"no figures are logged: {error}", stacklevel=2)
        return 0
    for logger in taking:
        for name, figure in drawn.items():
            if isinstance(logger, board):
                logger.experiment.add_figure(name, figure, global_step=step, close=False)
            elif isinstance(logger, wandb):
                logger.log_image(name, [figure])
            elif isinstance(logger, mlflow):
                logger.experiment.log_figure(logger.run_id, figure, f"{name}.png")
            else:
                logger.experiment.log_figure(figure_name=name, figure=figure, step=step)
    return len(taking)
