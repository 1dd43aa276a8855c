"""A reader's rows times its matrix are what the layer computes."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from lightning_prune.compensation import readers
from lightning_prune.compensation.readers import Reader, readers_of, sampled


def only(module: nn.Module) -> Reader:
    (reader,) = readers_of(module)
    return reader


def outputs(reader: Reader, x: Tensor) -> Tensor:
    """Shape (samples, positions, groups * outputs)."""
    weight = reader.module._parameters[reader.weight]
    assert weight is not None
    return torch.einsum("spgc,goc->spgo", reader.rows(x), reader.matrix(weight)).flatten(2)


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Linear(6, 4, bias=False), (3, 6)),
        (nn.Linear(6, 4, bias=False), (3, 5, 6)),
        (nn.Conv1d(4, 6, 3, stride=2, padding=1, bias=False), (3, 4, 9)),
        (nn.Conv2d(4, 6, 3, padding="same", bias=False), (3, 4, 7, 5)),
        (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect", bias=False), (3, 4, 7, 5)),
        (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), dilation=(1, 2), groups=2, bias=False), (3, 4, 7, 5)),
        (nn.Conv2d(4, 4, 3, groups=4, padding=1, bias=False), (3, 4, 7, 5)),
    ],
)
def test_rows_times_matrix_is_the_output(module: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    expected = module(x)
    if not isinstance(module, nn.Linear):
        expected = expected.flatten(2).mT
    torch.testing.assert_close(outputs(only(module), x), expected.reshape(3, -1, expected.shape[-1]))


def test_a_wide_convolution_is_read_by_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "MAX_COLUMNS", 20)
    conv = nn.Conv2d(4, 6, 3, padding=1, groups=2, bias=False)
    wide = nn.Conv2d(8, 6, 3, padding=1, groups=2, bias=False)
    assert only(conv).matrix(conv.weight).shape == (2, 3, 18)
    reader = only(wide)
    assert reader.matrix(wide.weight).shape == (2, 27, 4)
    torch.testing.assert_close(reader.fold(reader.matrix(wide.weight)), wide.weight)
    # a mixture of channels before the layer is one of the columns of its matrix, padded borders included
    mixture, x = torch.randn(2, 4, 4), torch.randn(2, 8, 5, 5)
    mixed = torch.einsum("gij,ngjhw->ngihw", mixture, x.unflatten(1, (2, 4))).flatten(1, 2)
    other = nn.Conv2d(8, 6, 3, padding=1, groups=2, bias=False)
    other.weight.data = reader.fold(reader.matrix(wide.weight) @ mixture)
    torch.testing.assert_close(other(x), wide(mixed), rtol=1e-4, atol=1e-5)


def test_a_transposed_convolution_is_read_by_its_input_channels() -> None:
    conv = nn.ConvTranspose2d(6, 4, 3, stride=2, groups=2, bias=False)
    reader = only(conv)
    assert reader.matrix(conv.weight).shape == (2, 18, 3)
    torch.testing.assert_close(reader.fold(reader.matrix(conv.weight)), conv.weight)
    mixture, x = torch.randn(2, 3, 3), torch.randn(2, 6, 5, 5)
    mixed = torch.einsum("gij,ngjhw->ngihw", mixture, x.unflatten(1, (2, 3))).flatten(1, 2)
    other = nn.ConvTranspose2d(6, 4, 3, stride=2, groups=2, bias=False)
    other.weight.data = reader.fold(reader.matrix(conv.weight) @ mixture)
    torch.testing.assert_close(other(x), conv(mixed), rtol=1e-4, atol=1e-5)


def test_what_enters_a_recurrent_layer() -> None:
    lstm = nn.LSTM(5, 3, num_layers=2, bidirectional=True, batch_first=True)
    assert [(r.weight, r.bias) for r in readers_of(lstm)] == [
        ("weight_ih_l0", "bias_ih_l0"),
        ("weight_ih_l0_reverse", "bias_ih_l0_reverse"),
    ]
    assert [(r.weight, r.bias) for r in readers_of(nn.GRUCell(5, 3, bias=False))] == [("weight_ih", None)]


def test_nothing_reads_through_a_norm() -> None:
    assert not list(readers_of(nn.BatchNorm2d(3)))
    assert not list(readers_of(nn.Embedding(3, 3)))


def test_nothing_is_known_of_a_convolution_with_code_of_its_own() -> None:
    class Standardised(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return self._conv_forward(input, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias)

    assert not list(readers_of(Standardised(3, 3, 1)))


def test_the_same_positions_are_taken_for_the_same_name() -> None:
    reader, x = only(nn.Linear(3, 2)), torch.arange(2 * 50 * 3).view(2, 50, 3)
    taken = sampled(reader, x, 20, "layer")
    assert taken.shape == (1, 20, 3)
    assert torch.equal(taken[0, :10] + 150, taken[0, 10:])
    assert torch.equal(taken, sampled(reader, x, 20, "layer"))
    assert not torch.equal(taken, sampled(reader, x, 20, "another"))
    assert sampled(reader, x, 1000, "layer").shape == (1, 100, 3)


def test_rows_of_a_convolution_are_never_laid_out_for_all_samples_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    conv, x, sizes = nn.Conv2d(4, 6, 3, padding=1), torch.randn(7, 4, 5, 5), []
    reader = only(conv)
    whole = sampled(reader, x, 70, "conv")
    noting = replace(reader, rows=lambda piece: sizes.append(len(piece)) or reader.rows(piece))
    monkeypatch.setattr(readers, "_PIECE", 2 * 25 * 36)
    assert torch.equal(sampled(noting, x, 70, "conv"), whole)
    assert sizes == [1, 2, 2, 2, 1]
