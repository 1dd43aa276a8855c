"""Masks on modules: attached once, overwritten in place, folded back to the very same Parameter."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from masks_cases import NAMES, Net, X, draw, held, masked
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_prune.model import masks
from lightning_prune.model.masks import MaskMethod


class Allocations(TorchDispatchMode):
    """Counts the bytes of new storages that operators return."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        out = func(*args, **(kwargs or {}))
        fresh = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        self.bytes += sum(t.nbytes for t in fresh if t.untyped_storage().data_ptr() not in known)
        return out


def test_the_round_trip_keeps_identity_order_and_names() -> None:
    model = Net()
    parameters = list(model.parameters())
    names = [name for name, _ in model.named_parameters()]
    state = list(model.state_dict())
    masks.attach(model, NAMES)
    assert [id(p) for p in model.parameters()] == [id(p) for p in parameters]
    assert [name for name, _ in model.named_parameters()] == names
    assert list(model.state_dict()) == state
    masks.write(model, draw(model).items())
    masks.attach(model, [*NAMES, "norm.weight"])
    assert [id(p) for p in model.parameters()] == [id(p) for p in parameters]
    assert masks.fold(model) is model
    assert [id(p) for p in model.parameters()] == [id(p) for p in parameters]
    assert [name for name, _ in model.named_parameters()] == names
    assert list(model.state_dict()) == state
    assert all(type(p) is nn.Parameter and p.requires_grad and p.is_leaf for p in model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert not any("mask" in name for name, _ in model.named_buffers() if name != "attn_mask")


def test_the_numbers_of_an_optimizer_checkpoint_stay() -> None:
    def trained(with_masks: bool) -> dict[str, Any]:
        model = masked() if with_masks else masked([])
        optimizer = torch.optim.Adam(model.parameters())
        model(X).sum().backward()
        optimizer.step()
        return optimizer.state_dict()

    plain, other = trained(False), trained(True)
    assert plain["param_groups"] == other["param_groups"]
    for index, state in plain["state"].items():
        assert torch.equal(state["exp_avg"], other["state"][index]["exp_avg"])


def test_masks_are_bool_and_all_true_at_first() -> None:
    model = masked()
    assert masks.is_masked(model)
    assert not masks.is_masked(Net())
    live = masks.read(model)
    assert list(live) == NAMES
    for name, mask in live.items():
        assert mask.dtype == torch.bool
        assert bool(mask.all())
        assert mask.shape == masks.dense_parameters(model)[name].shape
    assert live["conv.weight"] is masks.mask_of(model.conv, "weight")
    assert [name for name, _ in model.named_buffers()] == [name for name, _ in Net().named_buffers()]


def test_write_zeroes_and_never_brings_back() -> None:
    model = masked()
    first, second = draw(model), draw(model)
    before = {name: p.detach().clone() for name, p in masks.dense_parameters(model).items()}
    masks.write(model, first.items())
    masks.write(model, second.items())
    for name, mask in masks.read(model).items():
        kept = (first[name] & second[name]).numpy()
        np.testing.assert_array_equal(mask.numpy(), kept)
        expected = np.where(kept, before[name].numpy(), 0)
        np.testing.assert_array_equal(masks.dense_parameters(model)[name].detach().numpy(), expected)
        path, _, attribute = name.rpartition(".")
        np.testing.assert_array_equal(held(model, path, attribute).detach().numpy(), expected)
        assert not np.signbit(masks.dense_parameters(model)[name].detach().numpy()[~kept]).any()


def test_write_takes_a_generator_and_only_the_names_that_it_gets() -> None:
    model = masked()
    masks.write(model, ((name, torch.zeros(4, dtype=torch.bool)) for name in ["conv.bias"]))
    assert not bool(masks.read(model)["conv.bias"].any())
    assert bool(masks.read(model)["conv.weight"].all())


def test_the_tenth_write_costs_and_stores_no_more_than_the_first() -> None:
    model = masked()
    places = {name: mask.data_ptr() for name, mask in masks.read(model).items()}
    costs = []
    for _ in range(10):
        new = draw(model, 0.1)
        with Allocations() as allocated:
            masks.write(model, new.items())
        costs.append(allocated.bytes)
        model(X).sum().backward()
    assert costs == [costs[0]] * 10
    assert costs[0] <= sum(p.nbytes for p in masks.masks_by_parameter(model))
    assert places == {name: mask.data_ptr() for name, mask in masks.read(model).items()}
    assert [type(hook) for hook in model.head._forward_pre_hooks.values()] == [MaskMethod]
    assert [type(hook) for hook in model.conv._forward_pre_hooks.values()] == [MaskMethod] * 2
    assert len(model.state_dict()) == len(Net().state_dict())


def test_a_second_attach_changes_nothing_but_whether_channels_are_meant() -> None:
    model = masked()
    masks.write(model, draw(model).items())
    before = {name: mask.clone() for name, mask in masks.read(model).items()}
    assert masks.structured_names(model) == ()
    masks.attach(model, ["conv.weight"], is_structured=True)
    masks.attach(model, NAMES)
    assert masks.structured_names(model) == ("conv.weight",)
    assert all(torch.equal(mask, before[name]) for name, mask in masks.read(model).items())
    assert len(model.conv._forward_pre_hooks) == 2


def test_dense_names_are_those_of_the_unpruned_model() -> None:
    plain, model = Net(), masked()
    known = {**dict(plain.named_parameters()), **dict(plain.named_buffers())}
    assert set(masks.dense_names(model)) == set(known)
    assert set(masks.dense_parameters(model)) == {name for name, _ in plain.named_parameters()}
    assert masks.dense_parameters(model)["conv.weight"] is model.conv.get_parameter("weight")
    assert masks.locate(model, "conv.weight") == (model.conv, "weight")
    assert masks.locate(model, "scale") == (model, "scale")


@pytest.mark.parametrize("upstream", [1.0, -1e-30, 1e30])
def test_masked_gradients_are_exactly_zero(upstream: float) -> None:
    model = masked()
    masks.write(model, draw(model).items())
    (model(X).sum() * upstream).backward()
    for parameter, mask in masks.masks_by_parameter(model).items():
        assert parameter.grad is not None
        assert bool((parameter.grad[~mask] == 0).all())
    assert masks.dense_parameters(model)["conv.weight"].grad is not None


def test_gradients_and_outputs_are_those_of_a_model_with_zeros() -> None:
    model = masked()
    masks.write(model, draw(model).items())
    plain = masks.fold(copy.deepcopy(model))
    for net in (model, plain):
        net(X).square().sum().backward()
    assert torch.equal(model(X), plain(X))
    live = masks.read(model)
    for name, parameter in masks.dense_parameters(plain).items():
        assert parameter.grad is not None
        kept = parameter.grad * live[name] if name in live else parameter.grad
        grad = masks.dense_parameters(model)[name].grad
        assert grad is not None
        assert torch.equal(grad, kept)


def test_deepcopy_right_after_a_training_forward() -> None:
    model = masked()
    masks.write(model, draw(model).items())
    loss = model(X).sum()
    twin = copy.deepcopy(model)
    loss.backward()
    assert torch.equal(twin(X), model(X))
    twin(X).sum().backward()
    with torch.no_grad():
        held(twin, "head", "weight").fill_(3.0)
    assert held(model, "head", "weight").max() < 3
    assert not torch.equal(twin(X), model(X))
    masks.write(twin, [("head.weight", torch.zeros(3, 4, dtype=torch.bool))])
    assert bool(masks.read(model)["head.weight"].any())
    assert list(masks.read(masks.fold(copy.deepcopy(twin)))) == []


def test_a_masked_model_can_be_pickled_after_a_forward() -> None:
    model = masked()
    masks.write(model, draw(model).items())
    out = model(X)
    twin = pickle.loads(pickle.dumps(model))
    assert torch.equal(twin(X), out)
    assert list(masks.read(twin)) == NAMES


def test_a_state_dict_loads_into_a_fresh_masked_model() -> None:
    model, other = masked(), masked()
    masks.write(model, draw(model).items())
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(X), model(X))
    masks.put(other, masks.read(model))
    assert torch.equal(other(X), model(X))
    assert all(torch.equal(mask, masks.read(model)[name]) for name, mask in masks.read(other).items())


@pytest.mark.parametrize(
    "change", [nn.Module.double, nn.Module.half, lambda m: m.to(memory_format=torch.channels_last)]
)
def test_write_after_the_model_was_converted(change: Callable[[nn.Module], object]) -> None:
    model = masked()
    change(model)
    new = draw(model)
    masks.write(model, new.items())
    weight = model.conv.weight
    assert weight.dtype == held(model, "conv", "weight").dtype
    assert torch.equal(weight != 0, new["conv.weight"])


def test_training_goes_on_after_inference_mode() -> None:
    model = masked()
    with torch.inference_mode():
        model(X)
    masks.write(model, draw(model).items())
    model(X).sum().backward()
    assert bool((model.head.weight[~masks.read(model)["head.weight"]] == 0).all())


def test_what_an_optimizer_moved_goes_back() -> None:
    model = masked()
    masks.write(model, draw(model).items())
    with torch.no_grad():
        for parameter in masks.masks_by_parameter(model):
            parameter.add_(1.0)
    kept = {name: p.detach().clone() for name, p in masks.dense_parameters(model).items()}
    masks.zero_pruned(model)
    for name, mask in masks.read(model).items():
        assert torch.equal(masks.dense_parameters(model)[name], kept[name] * mask)


def test_detach_some() -> None:
    model = masked()
    masks.write(model, draw(model).items())
    masks.detach(model, ["conv.weight"])
    assert list(masks.read(model)) == ["conv.bias", "head.weight"]
    assert isinstance(model.conv.weight, nn.Parameter)
    assert len(model.conv._forward_pre_hooks) == 1
