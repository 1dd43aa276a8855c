import pytest
import torch
from support import LinearNet, Net, outputs
from torch import nn
from torch.nn.functional import cross_entropy

from lightning_prune import channel_groups, finalize
from lightning_prune.compaction import applied_plan
from lightning_prune.errors import CompactionError, PruningError
from lightning_prune.model import masks


def mask_units(model: nn.Module, example: torch.Tensor, wanted: dict[str, list[int]], structured: bool = True) -> None:
    """Mask the given units of the named channel groups, everywhere that they reach."""
    groups = channel_groups(model, example)
    known = masks.dense_parameters(model)
    keep = {
        member.parameter: torch.ones(known[member.parameter].shape, dtype=torch.bool)
        for name in wanted
        for member in groups[name].members
        if member.parameter in known
    }
    for name, units in wanted.items():
        for member in groups[name].members:
            if member.parameter in keep:
                at = torch.as_tensor(member.indices[units].ravel())
                keep[member.parameter].index_fill_(member.axis, at, False)
    masks.attach(model, keep, is_structured=structured)
    masks.write(model, keep.items())


def test_masked_channels_go_with_the_optimizer_state() -> None:
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(2):
        cross_entropy(model(torch.randn(4, 1, 6, 6)), torch.arange(4)).backward()
        optimizer.step()
    mask_units(model, torch.zeros(2, 1, 6, 6), {"conv2": [1, 5, 6]})
    before, identity = outputs(model), [id(p) for p in optimizer.param_groups[0]["params"]]
    assert finalize(model, optimizer=optimizer) is model
    torch.testing.assert_close(outputs(model), before, rtol=1e-5, atol=1e-6)
    assert (model.conv2.out_channels, model.norm2.num_features, model.conv3.in_channels) == (5, 5, 5)
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == identity
    assert all(optimizer.state[p]["exp_avg"].shape == p.shape for p in model.parameters())
    assert applied_plan(model) is not None
    assert [type(m) for m in model.modules()] == [type(m) for m in Net().modules()]
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_unstructured_masks_are_folded_only() -> None:
    model = LinearNet()
    masks.attach(model, ["first.weight"])
    masks.write(model, [("first.weight", torch.arange(192).view(16, 12) % 3 > 0)])
    # a whole row is masked by chance: shapes stay all the same, since nobody asked for smaller layers
    masks.write(model, [("first.weight", torch.arange(16).view(16, 1).expand(16, 12) > 0)])
    weight = masks.dense_parameters(model)["first.weight"]
    finalize(model)
    assert model.first.weight is weight
    assert model.first.weight.shape == (16, 12)
    assert int((model.first.weight == 0).sum()) == 64 + 8
    assert not masks.is_masked(model)


def test_model_without_masks_comes_back_as_it_is() -> None:
    model = Net()
    state = {name: (value, value.clone()) for name, value in model.state_dict(keep_vars=True).items()}
    assert finalize(model) is model
    for name, value in model.state_dict(keep_vars=True).items():
        assert value is state[name][0]
        assert torch.equal(value, state[name][1])


def test_finalize_twice_is_finalize_once() -> None:
    model = Net()
    mask_units(model, torch.zeros(2, 1, 6, 6), {"conv2": [0]})
    finalize(model)
    shapes = [p.shape for p in model.parameters()]
    assert [p.shape for p in finalize(model).parameters()] == shapes


@pytest.mark.parametrize("example", [torch.zeros(2, 1, 6, 6), (torch.zeros(2, 1, 6, 6),)])
def test_example_inputs_given(example: torch.Tensor | tuple[torch.Tensor]) -> None:
    model = Net()
    mask_units(model, torch.zeros(2, 1, 6, 6), {"conv2": [0]})
    model.example_input_array = None
    assert finalize(model, example).conv2.out_channels == 7


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_example_inputs_take_the_dtype_of_the_model(dtype: torch.dtype) -> None:
    model = Net().to(dtype)
    mask_units(model, torch.zeros(2, 1, 6, 6, dtype=dtype), {"conv2": [0]})
    assert finalize(model).conv2.out_channels == 7
    assert model.conv2.weight.dtype == dtype


def test_missing_example_input() -> None:
    model = Net()
    mask_units(model, torch.zeros(2, 1, 6, 6), {"conv2": [0]})
    model.example_input_array = None
    with pytest.raises(PruningError, match=r"channels of Net are masked, and removing them needs an example input"):
        finalize(model)
    assert masks.is_masked(model)


class ReadsAWidth(Net):
    """Computes with the number of channels, so that removing one changes the result."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images) * self.conv2.weight.shape[0]


def test_removal_that_is_not_exact_leaves_the_model_masked() -> None:
    model = ReadsAWidth()
    mask_units(model, torch.zeros(2, 1, 6, 6), {"conv2": [0]})
    before = outputs(model)
    with pytest.raises(CompactionError):
        finalize(model)
    assert masks.is_masked(model)
    assert torch.equal(outputs(model), before)
