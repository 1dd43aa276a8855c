"""Where a program runs, as frozen values: each knows its partitioner and what it does with zeros."""

from lightning_prune.deploy.backends.base import Backend
from lightning_prune.deploy.backends.coreml import CoreML, Linear8, Palette
from lightning_prune.deploy.backends.ethos_u import EthosU
from lightning_prune.deploy.backends.partitioned import Partitioned
from lightning_prune.deploy.backends.portable import Portable
from lightning_prune.deploy.backends.vulkan import Vulkan
from lightning_prune.deploy.backends.xnnpack import XNNPACK

__all__ = ["XNNPACK", "Backend", "CoreML", "EthosU", "Linear8", "Palette", "Partitioned", "Portable", "Vulkan"]
