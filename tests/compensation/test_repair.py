"""A repair writes kept entries alone, in the order of the layers, and leaves what it cannot help."""

import copy

import torch
from torch import Tensor, nn

from lightning_prune.compensation import LeastSquares, joined, record, refit
from lightning_prune.model import masks
from lightning_prune.model.example import Example


def chain() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(200, 4),
    )


def cut(model: nn.Module) -> None:
    """Mask the last four channels of the first layer, and what reads them."""
    masks.attach(model, ["0.weight", "0.bias", "2.weight"], is_structured=True)
    first, bias, second = (torch.ones(shape, dtype=torch.bool) for shape in ((8, 2, 3, 3), (8,), (8, 8, 3, 3)))
    first[4:] = bias[4:] = False
    second[:, 4:] = False
    masks.write(model, [("0.weight", first), ("0.bias", bias), ("2.weight", second)])


def test_the_error_falls_and_pruned_entries_stay_zero() -> None:
    model = chain()
    dense, inputs = copy.deepcopy(model), Example((torch.randn(128, 2, 5, 5),))
    targets = record(model, inputs, LeastSquares())
    cut(model)
    alone = copy.deepcopy(model)
    repairs = refit(model, inputs, targets, LeastSquares())
    x = torch.randn(64, 2, 5, 5)
    with torch.no_grad():
        before, after = ((m(x) - dense(x)).square().mean() for m in (alone, model))
    assert after < 0.8 * before  # the channels of random weights have little in common
    assert [repair.name for repair in repairs] == ["0.weight", "2.weight", "5.weight"]
    assert repairs[0].reason == "nothing is lost"
    assert repairs[1].after < repairs[1].before
    parameters, live = masks.dense_parameters(model), masks.read(model)
    for name, mask in live.items():
        assert bool((parameters[name][~mask] == 0).all())


def test_frozen_weights_and_layers_that_run_twice_are_left_alone() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared, self.head = nn.Linear(6, 6), nn.Linear(6, 2)
            self.head.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.shared(self.shared(x)))

    model, inputs = Twice(), Example((torch.randn(64, 6),))
    targets = record(model, inputs, LeastSquares())
    masks.attach(model, ["shared.weight"])
    masks.write(model, [("shared.weight", torch.rand(6, 6) < 0.5)])
    weights = {name: p.detach().clone() for name, p in masks.dense_parameters(model).items()}
    repairs = {repair.name: repair.reason for repair in refit(model, inputs, targets, LeastSquares())}
    assert repairs == {
        "shared.weight": "the layer runs more than once in a forward pass",
        "head.weight": "the weight is frozen",
    }
    for name, parameter in masks.dense_parameters(model).items():
        assert torch.equal(parameter, weights[name])


def test_modes_and_random_state_come_back() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 2))
    model[1].eval()
    state = torch.get_rng_state()
    record(model, Example((torch.randn(32, 4, generator=torch.Generator().manual_seed(0)),)), LeastSquares())
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert not model[1].training


def test_batches_are_joined_where_they_are_alike() -> None:
    scale = torch.tensor(2.0)
    batches = [Example((torch.full((n, 3), float(n)),), {"scale": scale}) for n in (4, 2)]
    batches.append(Example((torch.zeros(4, 5),), {"scale": scale}))
    whole = joined(batches, 5)
    assert whole.args[0].tolist() == [[4.0] * 3] * 4 + [[2.0] * 3]
    assert torch.equal(whole.kwargs["scale"], scale)
    frequent = joined([batches[2], *batches[:2]], 8)
    assert frequent.args[0].tolist() == [[4.0] * 3] * 4 + [[2.0] * 3] * 2


def test_the_output_projection_of_torchs_attention_takes_over_for_heads_that_went() -> None:
    layer = nn.TransformerEncoderLayer(12, 4, 16, batch_first=True, dropout=0.0).eval()
    with torch.no_grad():  # the last two heads do what the first two do
        rows = layer.self_attn.in_proj_weight.normal_().unflatten(0, (3, 4, 3))
        rows[:, 2:] = rows[:, :2]
    dense, inputs = copy.deepcopy(layer), Example((torch.randn(96, 6, 12),))
    targets = record(layer, inputs, LeastSquares())
    names = ["self_attn.in_proj_weight", "self_attn.in_proj_bias", "self_attn.out_proj.weight"]
    masks.attach(layer, names, is_structured=True)
    kept, widths = torch.arange(36) % 12 < 6, torch.arange(12) < 6  # of query, key and value the first two heads
    masks.write(layer, zip(names, (kept[:, None].expand(36, 12), kept, widths.expand(12, 12)), strict=True))
    alone = copy.deepcopy(layer)
    repairs = {repair.name: repair for repair in refit(layer, inputs, targets, LeastSquares())}
    x = torch.randn(64, 6, 12)
    with torch.no_grad():
        wanted, without, repaired = (m.self_attn(x, x, x)[0] for m in (dense, alone, layer))
    assert repairs["self_attn.out_proj.weight"].after < repairs["self_attn.out_proj.weight"].before
    assert (repaired - wanted).norm() < 0.05 * (without - wanted).norm()
    assert type(layer.self_attn) is nn.MultiheadAttention
    assert layer.self_attn._qkv_same_embed_dim
    assert not layer.self_attn.out_proj.weight[:, 6:].any()
