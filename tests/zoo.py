"""Architectures at small random configurations, on which channel groups and compaction are tried."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import zoo_networks as networks
import zoo_sequences as sequences
from graph_oracle import randomised
from torch import Tensor, nn
from zoo_transformers import TRANSFORMERS, build

Kind = Literal["conv", "norm", "recurrent"]


@dataclass(frozen=True)
class Architecture:
    """One network and its inputs.

    Attributes:
        name: as a reader knows it.
        make: returns the network, drawn from the global random generator.
        inputs: returns the keyword arguments of ``forward``, or one tensor.
        kind: convolutional without a normalised width, with layer norm or the like, or recurrent.
        is_imported: needs the transformers package.
    """

    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[], Mapping[str, Tensor] | Tensor]
    kind: Kind
    is_imported: bool = False

    def drawn(self) -> tuple[nn.Module, tuple[Tensor, ...], dict[str, Tensor]]:
        """Return the network at float64 with every parameter and statistic drawn anew, args and kwargs."""
        torch.manual_seed(0)
        model, inputs = randomised(self.make()), self.inputs()
        if isinstance(inputs, Tensor):
            return model, (_double(inputs),), {}
        return model, (), {name: _double(tensor) for name, tensor in inputs.items()}


def _double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _image(size: int = 16, channels: int = 3) -> Callable[[], Tensor]:
    return lambda: torch.randn(2, channels, size, size)


def _floats(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(*shape)


def _tokens() -> Tensor:
    return torch.randint(0, 40, (2, 7))


def _users_and_items() -> Mapping[str, Tensor]:
    return {"users": torch.randint(0, 20, (4,)), "items": torch.randint(0, 30, (4,))}


_HAND_WRITTEN: list[tuple[type[nn.Module], Callable[[], Any], Kind]] = [
    *(
        (network, _image(), "conv")
        for network in (
            *(networks.Vgg, networks.DenseNet, networks.ShuffleNetV2, networks.GroupedShuffleNet, networks.Inception),
            *(networks.Res2Net, networks.HrNet, networks.UNet, networks.SeResNet, networks.GhostNet, networks.RepVgg),
            *(networks.MobileInverted, networks.ResNeXt, networks.CspNet, networks.PyramidNet),
            networks.SuperResolution,
        )
    ),
    (sequences.MlpMixer, _image(), "norm"),
    (sequences.GatedMlp, _image(), "norm"),
    (sequences.TinyVit, _image(), "norm"),
    (sequences.ConvTasNet, _floats(2, 1, 64), "conv"),
    (sequences.WaveNet, _floats(2, 1, 32), "conv"),
    (sequences.Lstm, _tokens, "recurrent"),
    (sequences.BiLstm, _floats(2, 8, 9), "recurrent"),
    (sequences.Gru, _floats(5, 2, 8), "recurrent"),
    (sequences.Crnn, _image(16, 1), "recurrent"),
    (sequences.EinsumAttention, _floats(2, 7, 6), "norm"),
    (sequences.EncoderDecoder, _floats(2, 7, 6), "norm"),
    (sequences.Recommender, _users_and_items, "norm"),
]

ZOO: tuple[Architecture, ...] = (
    *(Architecture(network.__name__, network, inputs, kind) for network, inputs, kind in _HAND_WRITTEN),
    *(
        Architecture(name, partial(build, model, config, **settings), inputs, kind, is_imported=True)  # type: ignore[arg-type]
        for name, model, config, settings, inputs, kind in TRANSFORMERS
    ),
)
