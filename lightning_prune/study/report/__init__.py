"""What is known of a pruned model as one self-contained page, and the same figures for loggers."""

from lightning_prune.study.report.chart import Chart, widths
from lightning_prune.study.report.history import History
from lightning_prune.study.report.recorder import Recorder
from lightning_prune.study.report.report import Report

__all__ = ["Chart", "History", "Recorder", "Report", "widths"]
