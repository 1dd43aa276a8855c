"""Figures to the Trainer's loggers, those that take figures."""

import re
import warnings
from collections.abc import Sequence
from typing import Any

from lightning.pytorch.loggers import CometLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from lightning_prune.study.report.canvas import picture
from lightning_prune.study.report.figures import Figure


def to_loggers(figures: Sequence[Figure], loggers: Sequence[Logger], step: int) -> int:
    """Write figures to the loggers that take some: TensorBoard, W&B, MLflow and Comet; a CSV file takes numbers alone.

    Args:
        figures: what to write.
        loggers: any loggers; others than these are left alone, since nothing says how they take a figure.
        step: completed optimizer steps.

    Returns:
        how many loggers took the figures.
    """
    taking = [one for one in loggers if isinstance(one, TensorBoardLogger | WandbLogger | MLFlowLogger | CometLogger)]
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
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_figure(name, figure, global_step=step, close=False)
            elif isinstance(logger, WandbLogger):
                logger.log_image(name, [figure])
            elif isinstance(logger, MLFlowLogger):
                logger.experiment.log_figure(logger.run_id, figure, f"{name}.png")
            else:
                logger.experiment.log_figure(figure_name=name, figure=figure, step=step)
    return len(taking)
