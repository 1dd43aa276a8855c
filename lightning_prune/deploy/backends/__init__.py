"""Where a program runs, as frozen values: each knows its partitioner and what it does with zeros."""

from lightning_prune.deploy.backends.base import Backend
from lightning_prune.deploy.backends.xnnpack import XNNPACK

__all__ = ["XNNPACK", "Backend"]
