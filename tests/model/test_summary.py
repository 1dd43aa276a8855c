"""Summaries against numbers worked out by hand, and a model that is left exactly as it was."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_prune.compaction import Compaction, compact
from lightning_prune.graph import channel_groups
from lightning_prune.model import masks
from lightning_prune.model.example import Example, example_of, learnt, remember
from lightning_prune.model.summary import LayerSummary, as_evaluated, measure_macs, single, summarize

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "conv": (lambda: nn.Conv2d(3, 8, 3, padding=1), (2, 3, 10, 6), 2 * 8 * 10 * 6 * 3 * 9),
    "strided, dilated": (lambda: nn.Conv2d(3, 8, 3, stride=2, dilation=2), (1, 3, 11, 9), 8 * 4 * 3 * 3 * 9),
    "1-d": (lambda: nn.Conv1d(4, 6, 5, bias=False), (1, 4, 20), 6 * 16 * 4 * 5),
    "3-d": (lambda: nn.Conv3d(2, 4, 2), (1, 2, 3, 4, 5), 4 * (2 * 3 * 4) * 2 * 8),
    "depthwise": (lambda: nn.Conv2d(8, 8, 3, groups=8), (1, 8, 6, 6), 8 * 16 * 9),
    "depthwise, multiplier": (lambda: nn.Conv2d(4, 8, 3, groups=4), (1, 4, 6, 6), 8 * 16 * 9),
    "grouped": (lambda: nn.Conv2d(8, 12, 3, groups=4), (1, 8, 6, 6), 12 * 16 * 2 * 9),
    "transposed": (lambda: nn.ConvTranspose2d(3, 5, 2, stride=2), (1, 3, 4, 4), 3 * 16 * 5 * 4),
    "transposed, grouped": (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), (1, 4, 5, 5), 4 * 25 * 3 * 9),
    "linear": (lambda: nn.Linear(7, 5), (3, 7), 3 * 7 * 5),
    "linear on a sequence": (lambda: nn.Linear(7, 5, bias=False), (2, 9, 7), 2 * 9 * 7 * 5),
}


@pytest.mark.parametrize("name", LAYERS)
def test_multiply_accumulates_of_a_layer(name: str) -> None:
    build, shape, expected = LAYERS[name]
    layer = build()
    counted = measure_macs(nn.Sequential(layer, nn.ReLU()), torch.zeros(shape))
    assert (counted.total, dict(counted.per_weight)) == (expected, {"0.weight": expected})
    assert dict(measure_macs(layer, torch.zeros(shape)).per_weight) == {"weight": expected}


class Net(nn.Module):
    example_input_array = torch.zeros(1, 1, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(4 * 64, 10)
        self.scale = nn.Parameter(torch.ones(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.norm(self.conv(x))).flatten(1)
        return self.fc(x)


def test_a_network_layer_by_layer() -> None:
    summary = summarize(Net())
    found = {layer.name: layer for layer in summary.layers}
    assert list(found) == ["", "conv", "norm", "fc"]
    assert found["conv"] == LayerSummary("conv", "Conv2d", (4, 1, 3, 3), 40, 0, 2304, 2304, 160)
    assert found["fc"] == LayerSummary("fc", "Linear", (10, 256), 2570, 0, 2560, 2560, 4 * 2570)
    assert found[""] == LayerSummary("", "Net", (2, 3), 6, 0, 0, 0, 24)
    norm = found["norm"]
    assert (norm.parameters, norm.zeros, norm.macs, norm.bytes) == (8, 4, 0, 4 * 16 + 8)
    assert summary.parameters == sum(p.numel() for p in Net().parameters())
    assert summary.macs == summary.effective_macs == 2304 + 2560
    assert summary.bytes == sum(t.numel() * t.element_size() for t in Net().state_dict().values())


def test_zeros_of_a_masked_and_a_folded_model_are_the_same() -> None:
    model = Net()
    masks.attach(model, ["conv.weight", "fc.weight", "fc.bias"])
    keep = {name: torch.zeros_like(mask) for name, mask in masks.read(model).items()}
    keep["conv.weight"][:1] = True
    keep["fc.weight"][:, ::2] = True
    masks.write(model, keep.items())
    masked = summarize(model)
    assert masked == summarize(masks.fold(model))
    found = {layer.name: layer for layer in masked.layers}
    assert (found["conv"].zeros, found["conv"].effective_macs) == (27, 576)
    assert (found["fc"].zeros, found["fc"].effective_macs) == (1290, 1280)
    assert found["fc"].sparsity == 1290 / 2570
    assert masked.effective_macs == 576 + 1280
    assert masked.macs == 2304 + 2560
    assert masked.zeros == 27 + 1290 + 4
    assert masked.sparsity == masked.zeros / masked.parameters


def test_what_is_left_counts_from_the_dense_model() -> None:
    model = Net()
    assert {layer.left for layer in summarize(model).layers} == {1.0}  # also of the untrained norm, half of it zeros
    assert "left:" not in str(summarize(model))
    masks.attach(model, ["conv.weight"])
    masks.write(model, [("conv.weight", torch.arange(36).view(4, 1, 3, 3) % 4 > 0)])
    summary = summarize(model)
    assert {layer.name: layer.left for layer in summary.layers}["conv"] == (27 + 4) / 40
    assert summary.left == (2624 - 9) / 2624
    assert str(summary).splitlines()[-1] == "left: not zero, of the parameters before pruning"


@pytest.mark.parametrize("part", ["", "net"])
def test_removed_channels_are_no_longer_left(part: str) -> None:
    model = nn.Module()
    model.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    x = torch.zeros(1, 4)
    inner = model.get_submodule("net")
    compact(inner, Compaction.from_keep(channel_groups(inner, x), {"0": [0, 2]}), x)
    summary = summarize(model if part == "" else inner, x if part else None)
    assert [layer.left for layer in summary.layers] == [10 / 40, 6 / 18]
    assert (summary.parameters, summary.parameters_before, summary.left) == (16, 58, 16 / 58)
    assert "27.6%" in str(summary)


def test_everything_stays_as_it_was() -> None:
    model = Net()
    model.norm.eval()
    model(torch.randn(4, 1, 8, 8))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    random = torch.get_rng_state()
    summarize(model, torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1)))
    assert [module.training for module in model.modules()] == modes == [True, True, False, True, True]
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_as_evaluated_puts_modes_and_random_state_back_after_an_error() -> None:
    model = Net()
    model.drop.eval()
    random = torch.get_rng_state()

    def fail() -> None:
        with as_evaluated(model) as same:
            assert same is model
            assert not any(module.training for module in model.modules())
            torch.rand(3)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in model.modules()] == [True, True, True, False, True]


def test_training_goes_on_after_a_summary_of_a_masked_model() -> None:
    model = Net()
    masks.attach(model, ["fc.weight"])
    summarize(model)
    model(torch.randn(4, 1, 8, 8)).sum().backward()
    assert masks.dense_parameters(model)["fc.weight"].grad is not None


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 6)
        self.b = nn.Linear(6, 6)
        self.b.weight = self.a.weight
        self.c = self.a

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x)))


def test_tied_weights_count_once_and_their_work_as_often_as_it_is_done() -> None:
    summary = summarize(Tied(), torch.zeros(1, 6))
    assert summary.parameters == sum(p.numel() for p in Tied().parameters()) == 48
    assert summary.bytes == 4 * 48
    assert [(layer.name, layer.macs) for layer in summary.layers] == [("a", 108), ("b", 0)]
    assert summary.macs == 108
    model = Tied()
    masks.attach(model, ["a.weight"])
    masks.write(model, [("a.weight", torch.tensor([True, False]).repeat(18).view(6, 6))])
    assert summarize(model, torch.zeros(1, 6)).effective_macs == 54
    assert dict(measure_macs(model, torch.zeros(1, 6)).per_weight) == {"a.weight": 108}


def test_a_module_below_two_parents_is_counted() -> None:
    inner = nn.Linear(4, 4)
    model = nn.Sequential(nn.Sequential(inner), nn.Sequential(nn.ReLU(), inner))
    assert dict(measure_macs(model, torch.zeros(1, 4)).per_weight) == {"0.0.weight": 32}


def test_attention_is_in_the_total() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    counted = measure_macs(layer, torch.zeros(1, 5, 8))
    projections, heads, hidden = 5 * 8 * 32, 2 * 5 * 5 * 8, 2 * 5 * 8 * 16
    assert counted.total == projections + heads + hidden
    assert counted.per_weight["linear1.weight"] == 5 * 8 * 16
    rows = {row.name: row.macs for row in summarize(layer, torch.zeros(1, 5, 8)).layers}
    assert (rows["self_attn"], rows["self_attn.out_proj"]) == (5 * 8 * 24 + heads, 5 * 8 * 8)
    assert sum(macs or 0 for macs in rows.values()) == counted.total


@pytest.mark.parametrize("batch_first", [False, True])
def test_attention_over_another_sequence_of_another_width(batch_first: bool) -> None:
    layer = nn.MultiheadAttention(8, 2, kdim=4, vdim=6, batch_first=batch_first)
    example = [torch.zeros(2, 5, 8), torch.zeros(2, 3, 4), torch.zeros(2, 3, 6)]
    summary = summarize(layer, example if batch_first else [x.transpose(0, 1) for x in example])
    products = 2 * 2 * 5 * 3 * 8
    assert {row.name: row.macs for row in summary.layers} == {
        "": 2 * (5 * 8 * 8 + 3 * 4 * 8 + 3 * 6 * 8) + products,
        "out_proj": 2 * 5 * 8 * 8,
    }
    assert sum(row.macs or 0 for row in summary.layers) == summary.macs


def test_the_weights_of_attention_count_as_those_of_layers_do() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    counted = measure_macs(layer, torch.zeros(1, 5, 8))
    names = [name for name, _ in layer.named_parameters()]
    assert counted.of_parameters(names) == {
        "self_attn.in_proj_bias": 2 * 5 * 5 * 8,
        "self_attn.in_proj_weight": 5 * 8 * 24,
        "self_attn.out_proj.weight": 5 * 8 * 8,
        "linear1.weight": 5 * 8 * 16,
        "linear2.weight": 5 * 16 * 8,
    }


def test_without_an_example_input_there_are_no_macs() -> None:
    summary = summarize(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2, affine=False)))
    assert (summary.macs, summary.effective_macs, summary.layers[0].macs) == (None, None, None)
    assert [layer.name for layer in summary.layers] == ["0", "1"]
    assert summary.bytes == 4 * 8 + 4 * 4 + 8
    assert "-" in str(summary)
    assert summarize(nn.ReLU()).parameters == 0
    assert summarize(nn.ReLU()).sparsity == 0.0


def test_the_table() -> None:
    lines = str(summarize(Net())).splitlines()
    assert lines[0].split() == ["layer", "type", "shape", "parameters", "left", "MACs", "bytes"]
    assert lines[2].split() == ["(root)", "Net", "2x3", "6", "100.0%", "0", "24"]
    assert lines[3].split() == ["conv", "Conv2d", "4x1x3x3", "40", "100.0%", "2,304", "160"]
    assert lines[-1].split() == ["in", "all", "2,624", "100.0%", "4,864", "10,536"]
    assert len({len(line) for line in lines}) == 1


def test_the_input_follows_the_model_in_dtype() -> None:
    assert measure_macs(nn.Linear(3, 2).double(), torch.zeros(1, 3)).total == 6
    assert measure_macs(nn.Embedding(5, 3), torch.zeros(1, 3, dtype=torch.long)).total == 0


class Two(nn.Module):
    example_input_array = (torch.zeros(1, 3), torch.zeros(1, 3))

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.fc(input=a + b)


def test_several_inputs_and_keywords_inside() -> None:
    assert summarize(Two()).macs == 6
    assert summarize(Two(), [torch.zeros(5, 3), torch.zeros(5, 3)]).macs == 30
    assert example_of(nn.ReLU()) is None
    example = example_of(Two())
    assert example is not None
    assert len(example.args) == 2


def test_lazy_layers_stay_lazy() -> None:
    model = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 2))
    random = torch.get_rng_state()
    assert summarize(model, torch.zeros(1, 3)).macs == 12 + 8
    assert isinstance(model[0], nn.LazyLinear)
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        (
            torch.zeros(1, 3, 8, 8),
            r"Net rejects the example input \(1, 3, 8, 8\): .*expected input.*to have 1 channels",
        ),
        ((torch.zeros(1, 1, 8, 8), 5), r"Net rejects the example input \(1, 1, 8, 8\), 5: .*positional arguments"),
    ],
)
def test_an_input_that_the_model_rejects(inputs: Any, text: str) -> None:
    model = Net()
    with pytest.raises(ValueError, match=text):
        summarize(model, inputs)
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_an_input_of_another_type() -> None:
    with pytest.raises(
        TypeError, match="a tensor, a tuple of positional arguments or a dict of keyword arguments, got <class 'int'>"
    ):
        Example.of(5)  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_recurrent_layers_are_in_the_total(kind: Callable[[int, int], nn.Module], gates: int) -> None:
    steps, inputs, hidden = 4, 5, 6
    found = measure_macs(kind(inputs, hidden), torch.zeros(steps, 1, inputs))
    assert found.total == steps * gates * hidden * (inputs + hidden)


@pytest.mark.parametrize("batch", [1, 2, 64])
def test_of_a_learnt_example_one_sample_counts_and_of_an_own_one_all(batch: int) -> None:
    net, x = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 16, 5)), torch.zeros(batch, 1, 6, 6)
    macs = 4 * 16 * 9 + 4 * 16 * 5
    assert measure_macs(net, x).total == batch * macs
    remember(net, learnt(Example((x,))))
    assert summarize(net).macs == macs
    assert [layer.macs for layer in summarize(net).layers] == [4 * 16 * 9, 4 * 16 * 5]
    remember(net, Example((x,)))
    assert summarize(net).macs == batch * macs


class Pairs(nn.Module):
    """Takes pairs: two samples are the least."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.fc(x).chunk(2)
        return left - right


def test_what_one_sample_is_too_few_for_or_has_no_one_batch_stays_whole() -> None:
    net = Pairs()
    assert measure_macs(net, learnt(Example((torch.zeros(8, 6),)))).total == 2 * 6 * 3
    several = learnt(Example((torch.zeros(8, 6), torch.zeros(3, 6))))
    kept = single(net, several)
    assert [len(x) for x in kept.args] == [8, 3]
    assert not kept.is_learnt
