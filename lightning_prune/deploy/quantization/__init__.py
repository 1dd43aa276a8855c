"""From float to integers, as frozen values that a backend is given."""

from lightning_prune.deploy.quantization.base import Quantization, Quantized
from lightning_prune.deploy.quantization.int4 import Int4Groupwise
from lightning_prune.deploy.quantization.int8 import Int8, Int8Dynamic

__all__ = ["Int4Groupwise", "Int8", "Int8Dynamic", "Quantization", "Quantized"]
