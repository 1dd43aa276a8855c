"""The contract of channel_groups: any module goes in, nothing of it changes, and every axis has an answer."""

import copy
import re
import warnings
from collections.abc import Callable
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from graph_oracle import check_exact, randomised, sizes
from torch import Tensor, nn

from lightning_prune.errors import GraphError
from lightning_prune.graph import ChannelGroup, channel_groups
from lightning_prune.model import masks

X = torch.randn(2, 3, 8, 8)


class Net(nn.Module):
    """Two convolutions with an operator between, and two outputs."""

    def __init__(self, operator: Callable[[Tensor], Tensor] = torch.relu):
        super().__init__()
        self.operator = operator
        self.conv1, self.bn, self.conv2 = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 6, 1)
        self.head = nn.Conv2d(6, 2, 1)
        self.unused = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Any:
        x = self.conv2(self.operator(self.bn(self.conv1(x))))
        return {"logits": self.head(x), "pooled": (x.mean(1), None)}


class Lit(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = Net()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)["logits"]


def test_groups_are_a_sequence_with_names_and_a_table():
    groups = channel_groups(Net(), X)
    assert [group.name for group in groups] == ["conv1", "conv1 (input)", "conv2", "head"]
    assert groups["conv1"] is groups[0]
    assert groups[1:3][0].name == "conv1 (input)"
    assert isinstance(groups[-1], ChannelGroup)
    assert len(groups) == 4
    with pytest.raises(KeyError, match=r"'conv9'; there are conv1, conv1 \(input\), conv2, head"):
        groups["conv9"]
    header, _, first, *rest = str(groups).splitlines()
    assert header.split("  ")[0] == "channel group"
    assert first.split() == ["conv1", "8", "(conv1.weight,", "0,", "0)", "yes"]
    assert rest[-2].endswith("no        model output")


def test_members_tell_parameter_axis_indices_and_role():
    groups = channel_groups(Net(), X)
    members = {(m.parameter, m.axis): (m.role, m.offset, m.indices.shape) for m in groups["conv1"].members}
    assert members == {
        ("conv1.weight", 0): ("output", 0, (8, 1)),
        ("conv1.bias", 0): ("output", 0, (8, 1)),
        ("bn.weight", 0): ("output", 0, (8, 1)),
        ("bn.bias", 0): ("output", 0, (8, 1)),
        ("bn.running_mean", 0): ("output", 0, (8, 1)),
        ("bn.running_var", 0): ("output", 0, (8, 1)),
        ("conv2.weight", 1): ("input", 0, (8, 1)),
    }
    assert all(m.indices.dtype == np.int64 for group in groups for m in group.members)


def test_a_mean_over_channels_names_itself_and_unused_parameters_are_absent():
    groups = channel_groups(Net(), X)
    assert groups["conv2"].reason == "mean in the model's own forward reduces it: it is an output"
    assert groups.shapes["conv1.weight"] == (8, 3, 3, 3)
    assert not any(name.startswith("unused") for name in groups.shapes)
    assert not any(m.parameter.startswith("unused") for group in groups for m in group.members)


def test_unknown_operator_keeps_what_touches_it_and_is_named_once():
    def rotate(x: Tensor) -> Tensor:
        return torch.rot90(torch.rot90(x, 1, (2, 3)), -1, (2, 3))

    with pytest.warns(UserWarning, match="no rule for aten") as caught:
        groups = channel_groups(Net(rotate), X)
    assert len(caught) == 1
    assert groups.unknown == ("aten.rot90.default",)
    assert groups["conv1"].reason == "no rule for aten.rot90.default at the root"
    assert sizes(groups) == {}


def test_the_model_is_left_alone():
    model = Net().train()
    model.conv2.eval()
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    parameters = list(map(id, model.parameters()))
    state = torch.get_rng_state()
    channel_groups(model, X)
    assert [module.training for module in model.modules()] == modes
    assert list(map(id, model.parameters())) == parameters
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_train_mode_and_eval_mode_give_the_same_groups():
    assert str(channel_groups(Net().train(), X)) == str(channel_groups(Net().eval(), X))


def test_lightning_module_keeps_dense_names():
    model = Lit()
    groups = check_exact(model, X)
    # nobody reads the mean that net gives beside its maps, so its channels may go
    assert sizes(groups) == {"net.conv1": 8, "net.conv2": 6}
    assert sizes(channel_groups(model.net, X.double())) == {"conv1": 8}


def test_masked_model_gives_the_groups_of_the_dense_one():
    model = Net()
    dense = str(channel_groups(model, X))
    masks.attach(model, ["conv1.weight", "bn.weight", "conv2.weight"])
    model(X)["logits"].sum().backward()
    assert str(channel_groups(model, X)) == dense
    assert masks.is_masked(model)


class ManyInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.image, self.vector, self.out = nn.Conv2d(3, 8, 1), nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, image: Tensor, vector: Tensor, *, scale: Tensor, is_scaled: bool = True) -> Tensor:
        x = self.image(image).mean((2, 3)) + torch.tanh(self.vector(vector))
        return self.out(x * scale if is_scaled else x)


def test_several_inputs_and_keyword_inputs():
    groups = check_exact(ManyInputs(), X, torch.randn(2, 4), kwargs={"scale": torch.ones(2, 1).double()})
    assert sizes(groups) == {"image": 8}
    assert groups["vector (input)"].reason == "input of the model"


def test_inputs_may_be_a_tensor_a_tuple_or_a_list():
    model = Net()
    assert str(channel_groups(model, X)) == str(channel_groups(model, (X,))) == str(channel_groups(model, [X]))


class Shared(nn.Module):
    """One convolution called twice, and one weight under two names."""

    def __init__(self):
        super().__init__()
        self.stem, self.body, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 2, 1)
        self.again = nn.Conv2d(8, 8, 3, padding=1)
        self.again.weight = self.body.weight
        self.inner = nn.Sequential(nn.Conv2d(8, 5, 1), nn.ReLU(), nn.Conv2d(5, 8, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.body(torch.relu(self.body(self.stem(x)))))
        return self.head(self.inner(self.inner(self.again(x))))


def test_a_module_called_twice_and_a_tied_weight():
    groups = check_exact(Shared(), X)
    assert sizes(groups) == {"stem": 8, "inner.0": 5}
    assert {"body.weight", "body.bias", "again.bias"} <= {m.parameter for m in groups["stem"].members}
    assert "again.weight" not in groups.shapes


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_models_and_inputs_that_cannot_be_traced_say_what_to_do():
    text = r"Net cannot be traced with inputs \(\(2, 4, 8, 8\)\): .*example_inputs, or its example_input_array"
    with pytest.raises(GraphError, match=text) as refused:
        channel_groups(Net(), torch.randn(2, 4, 8, 8))
    assert "example_kwargs" not in str(refused.value)  # which neither a fit nor prune has
    with pytest.raises(GraphError, match=r"ManyInputs cannot be traced with inputs \(\(2, 3, 8, 8\), scale=int\)"):
        channel_groups(ManyInputs(), X, {"scale": 1})
    with pytest.raises(GraphError, match="Sequential cannot be traced"):
        channel_groups(nn.Sequential(nn.Conv2d(3, 3, 1), Branches()), X)


class Item(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, : int(x.argmax())]


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(64, 8, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x.flatten(2), torch.tensor([3, 2]), batch_first=True)
        return self.lstm(packed)[1][0]


@pytest.mark.parametrize(
    ("model", "code"),
    [
        (Branches(), "return x if x.sum() > 0 else -x"),
        (Item(), "return x[:, : int(x.argmax())]"),
        (Packed(), "return self.lstm(packed)[1][0]"),
    ],
)
def test_code_that_cannot_be_traced_is_named_by_file_and_line(model: nn.Module, code: str):
    with pytest.raises(GraphError, match=rf"\(at {re.escape(__file__)}:\d+: {re.escape(code)}\)\. .*Element\(\)"):
        channel_groups(model, X)


def test_a_lazy_model_cannot_be_traced():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.Sequential(nn.LazyConv2d(4, 1), nn.Conv2d(4, 2, 1))
    with pytest.raises(GraphError, match="cannot be traced"):
        channel_groups(model, X)


def test_a_model_without_parameters_has_no_groups():
    groups = channel_groups(nn.ReLU(), X)
    assert len(groups) == 0
    assert str(groups).startswith("channel group")


@pytest.mark.gpu
def test_a_model_on_a_gpu_is_traced_there():
    state = torch.cuda.get_rng_state()
    groups = channel_groups(randomised(Net()).cuda(), X.double().cuda())
    assert sizes(groups) == {"conv1": 8}
    assert torch.equal(torch.cuda.get_rng_state(), state)
