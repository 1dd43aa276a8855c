"""From float to integers, as frozen values that a backend is given."""

from lightning_prune.deploy.quantization.base import Quantization, Quantized

__all__ = ["Quantization", "Quantized"]
