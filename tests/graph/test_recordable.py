"""PYTEST_DONT_REWRITE: asserts are to be compiled as Python compiles them."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lightning_prune import channel_groups
from lightning_prune.errors import GraphError
from lightning_prune.graph.recordable import recordable


def asserted(x: Tensor, n: Tensor) -> None:
    assert n.min() > 0


def asserted_together(x: Tensor, n: Tensor) -> None:
    assert (x == x).all() and n.max() < 99, f"lengths up to {n.max()}"  # noqa: PT018


def raised(x: Tensor, n: Tensor) -> None:
    if (n < 0).any():
        raise ValueError(f"lengths {n.tolist()} of shape {tuple(n.shape)}")


def raised_unless(x: Tensor, n: Tensor) -> None:
    if not (n > 0).all() or n.max() > 99:
        raise ValueError("no lengths")


class Checked(nn.Module):
    def __init__(self, check: Callable[[Tensor, Tensor], None]) -> None:
        super().__init__()
        self.check = check
        self.first, self.second = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor, n: Tensor) -> Tensor:
        self.check(x, n)
        return self.second(torch.relu(self.first(x)))


INPUTS = (torch.rand(2, 3), torch.tensor([1, 2]))


@pytest.mark.parametrize("check", [asserted, asserted_together, raised, raised_unless], ids=lambda f: f.__name__)
def test_a_check_of_values_does_not_stop_the_trace(check: Callable[[Tensor, Tensor], None]) -> None:
    assert channel_groups(Checked(check), INPUTS)["first"].prunable


def test_a_branch_on_values_does() -> None:
    class Branching(Checked):
        def forward(self, x: Tensor, n: Tensor) -> Tensor:
            h = self.first(x)
            if n.max() > 2:
                h = h * 2
            return self.second(h)

    with pytest.raises(GraphError, match=r"test_recordable\.py:\d+: if n\.max\(\) > 2:"):
        channel_groups(Branching(asserted), INPUTS)


def test_outside_of_it_checks_check() -> None:
    with recordable():
        pass
    with pytest.raises(AssertionError):
        asserted(*INPUTS[:1], torch.tensor([0]))


def test_masks_of_torchs_own_decoder_are_recorded() -> None:
    class Decoding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerDecoderLayer(8, 2, dim_feedforward=16, batch_first=True)
            self.decoder = nn.TransformerDecoder(layer, 2)

        def forward(self, x: Tensor) -> Tensor:
            mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
            return self.decoder(x, x, tgt_mask=mask)

    assert channel_groups(Decoding(), torch.rand(2, 5, 8))["decoder.layers.0.linear1"].prunable
