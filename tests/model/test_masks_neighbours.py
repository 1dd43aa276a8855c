"""Masks beside what others put there: torch's own hooks, tied weights, shared modules, attention."""

import copy

import pytest
import torch
from masks_cases import NAMES, Net, X, draw, masked, state_of
from torch import Tensor, nn
from torch.nn.utils import prune

from lightning_prune.errors import PruningError
from lightning_prune.model import masks


def test_a_buffer_of_the_users_is_no_mask() -> None:
    model = masked()
    assert "attn_mask" in masks.dense_names(model)
    assert "attn" not in masks.dense_names(model)
    masks.write(model, draw(model).items())
    masks.fold(model)
    assert model.get_buffer("attn_mask").tolist() == [1.0, 0.5, 0.0]


def test_the_model_itself_may_be_the_layer() -> None:
    layer = nn.Linear(3, 2)
    masks.attach(layer, ["weight"])
    masks.write(layer, [("weight", torch.eye(2, 3).bool())])
    assert layer.weight.count_nonzero() == 2
    assert list(masks.read(masks.fold(layer))) == []


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(6, 4)
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.words.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.words(tokens))


def test_a_tied_weight_is_masked_wherever_it_stands() -> None:
    model = Tied()
    parameter = model.words.weight
    masks.attach(model, ["words.weight"])
    assert list(masks.read(model)) == ["words.weight", "head.weight"]
    assert [id(p) for p in model.parameters()] == [id(parameter)]
    keep = torch.rand(6, 4) > 0.5
    masks.write(model, [("words.weight", keep)])
    assert torch.equal(model.head.weight, model.words.weight)
    assert torch.equal(masks.read(model)["head.weight"], keep)
    model(torch.arange(6)).sum().backward()
    assert parameter.grad is not None
    assert bool((parameter.grad[~keep] == 0).all())
    masks.fold(model)
    assert model.head.weight is parameter
    assert model.words.weight is parameter
    assert torch.equal(parameter != 0, keep)


def test_first_names() -> None:
    assert masks.first_names(Tied()) == {"words.weight": "words.weight", "head.weight": "words.weight"}
    model = Tied()
    masks.attach(model, ["words.weight"])
    assert masks.first_names(model) == masks.first_names(Tied())


def test_a_module_that_stands_twice_has_one_mask() -> None:
    layer = nn.Linear(3, 3)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    masks.attach(model, ["0.weight"])
    assert list(masks.read(model)) == ["0.weight"]
    assert set(masks.dense_names(model)) == {"0.weight", "0.bias", "2.weight", "2.bias"}


def test_a_hook_of_torch_is_refused_and_nothing_is_masked() -> None:
    model = Net()
    prune.l1_unstructured(model.head, "weight", amount=0.5)
    before = state_of(model)
    with pytest.raises(
        PruningError, match=r"head.weight is already pruned by L1Unstructured of torch.nn.utils.prune: m"
    ):
        masks.attach(model, NAMES)
    assert state_of(model) == before
    assert not prune.is_pruned(model.conv)


def test_no_attribute_of_a_module_is_in_the_way() -> None:
    model = Net()
    model.head.weight_mask = "mine"  # type: ignore[assignment]
    model.head.register_buffer("weight_orig", torch.ones(1))
    masks.attach(model, NAMES)
    masks.write(model, draw(model).items())
    model(X).sum().backward()
    masks.fold(model)
    assert (model.head.weight_mask, model.head.get_buffer("weight_orig").tolist()) == ("mine", [1.0])


def test_a_parameter_that_is_not_there() -> None:
    with pytest.raises(KeyError, match=r"body.weight"):
        masks.attach(Net(), ["conv.weight", "body.weight"])


def test_hooks_of_torch_are_folded_too() -> None:
    model = Net()
    prune.random_unstructured(model.conv, "weight", amount=0.5)
    prune.l1_unstructured(model.conv, "weight", amount=0.5)
    prune.ln_structured(model.head, "weight", amount=1, n=2, dim=0)
    out, order = model(X), [id(p) for p in model.parameters()]
    zeros = int((model.conv.weight == 0).sum())
    masks.fold(model)
    assert [id(p) for p in model.parameters()] == order
    assert torch.equal(model(X), out)
    assert int((model.conv.weight == 0).sum()) == zeros
    assert not prune.is_pruned(model)


def test_torch_sees_and_removes_our_masks() -> None:
    model = masked()
    masks.write(model, draw(model).items())
    out = model(X)
    assert prune.is_pruned(model)
    assert prune.is_pruned(model.head)
    for path, name in (("conv", "weight"), ("conv", "bias"), ("head", "weight")):
        prune.remove(model.get_submodule(path), name)
    assert not prune.is_pruned(model)
    assert torch.equal(model(X), out)
    assert set(dict(model.named_parameters())) == set(dict(Net().named_parameters()))


def test_attention_reads_its_masked_output_projection() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    names = ["self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight"]
    masks.attach(layer, names)
    masks.write(layer, draw(layer).items())
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    x = torch.randn(2, 3, 8)
    for _ in range(3):
        optimizer.zero_grad()
        layer(x).square().sum().backward()
        optimizer.step()
    twin = copy.deepcopy(layer)
    masks.fold(twin)
    assert not any(module._forward_pre_hooks for module in twin.modules())
    for train in (True, False):
        torch.testing.assert_close(layer.train(train)(x), twin.train(train)(x))
    with torch.no_grad():
        torch.testing.assert_close(layer.eval()(x), twin.eval()(x))
    gone = ~masks.read(layer)["self_attn.out_proj.weight"]
    assert bool((twin.self_attn.out_proj.weight[gone] == 0).all())
