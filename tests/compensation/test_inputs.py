"""The last inputs before an event are kept, no more of them than repair looks at, and nothing at other times."""

import copy
import io
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_prune.compensation import LastInputs
from lightning_prune.errors import PruningError


class Net(nn.Module):
    """Calls the network inside, unless it is called in its place."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(3, 2)

    def forward(self, x: Tensor, *, scale: float = 1.0) -> Tensor:
        return self.net(x) * scale


def batch(size: int, value: float) -> Tensor:
    return torch.full((size, 3), value)


def joined(inputs: LastInputs, model: nn.Module) -> Any:
    call, _ = inputs.last_call(model, 7, True)
    assert call is not None
    return call


def test_the_newest_samples_are_kept() -> None:
    model, asked, is_near = Net(), [], True
    inputs = LastInputs(20, lambda steps: asked.append(steps) is None and is_near)
    inputs.listen(model)
    for step in range(5):
        model(batch(8, float(step)), scale=2.0)
    model(batch(30, 9.0)[:8])
    call = joined(inputs, model)
    assert asked == [3] * 12  # the child is seen too
    assert call.path == ""
    assert call.example.args[0][:, 0].tolist() == [9.0] * 8 + [4.0] * 8 + [3.0] * 4
    inputs.stop()
    assert "forward" not in vars(model)
    assert "forward" not in vars(model.net)
    assert joined(inputs, model).example.args[0].shape == (20, 3)
    inputs.after_event()
    assert joined(inputs, model).example.args[0].shape == (20, 3)
    is_near = False
    inputs.after_event()
    with pytest.warns(UserWarning, match=r"step 7: the event is not repaired, since forward of Net was not called"):
        assert inputs.last_call(model, 7, True) == (None, "forward of Net was not called in the steps before it")


def test_batches_of_another_shape_are_left_out_with_a_warning() -> None:
    model = nn.Flatten()
    inputs = LastInputs(48, lambda steps: True)
    inputs.listen(model)
    for length in (3, 3, 5):
        model(torch.rand(16, length))
    with pytest.warns(UserWarning, match="step 7: 32 of the 48 samples kept for repair and criteria are looked at"):
        call = joined(inputs, model)
    assert call.example.args[0].shape == (32, 3)
    assert joined(inputs, model).samples == 32  # told once
    inputs.stop()


def test_nothing_is_kept_while_no_event_is_near_or_gradients_are_off() -> None:
    model, is_near = Net(), False
    inputs = LastInputs(16, lambda steps: is_near)
    inputs.listen(model)
    model(batch(16, 1.0))
    is_near = True
    with torch.no_grad():
        model(batch(16, 2.0))
    assert inputs.state_dict() == [[]]
    model(batch(16, 3.0))
    assert joined(inputs, model).example.args[0][0, 0] == 3


def test_the_child_that_is_called_in_place_of_the_model_counts() -> None:
    model = Net()
    inputs = LastInputs(16, lambda steps: True)
    inputs.listen(model)
    model.net(batch(16, 1.0))
    call = joined(inputs, model)
    assert call.path == "net"
    assert torch.equal(call(model), model.net(batch(16, 1.0)))
    model(batch(16, 2.0))
    assert joined(inputs, model).path == ""


def test_what_forward_changes_in_place_is_kept_as_it_came() -> None:
    class Scaling(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input.mul_(0))

    model, x = Scaling(3, 2), batch(16, 5.0)
    inputs = LastInputs(16, lambda steps: True)
    inputs.listen(model)
    model(x)
    assert joined(inputs, model).example.args[0].unique().tolist() == [5.0]


def test_too_few_samples_are_told_once() -> None:
    model = Net()
    inputs = LastInputs(64, lambda steps: True)
    inputs.listen(model)
    model(batch(15, 1.0))
    with pytest.warns(UserWarning, match=r"the 15 samples of the last forward passes are too few, 16 are the least"):
        call, reason = inputs.last_call(model, 3, True)
    assert call is not None
    assert reason.startswith("the 15 samples")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inputs.last_call(model, 4, True)


def test_copies_have_their_plain_forward() -> None:
    model = Net()
    inputs = LastInputs(16, lambda steps: True)
    inputs.listen(model)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert copied(batch(16, 1.0)).shape == (16, 2)
        assert inputs.state_dict() == [[]]


def test_a_state_comes_back_from_a_file_without_pickled_objects() -> None:
    model = Net()
    first, second = (LastInputs(32, lambda steps: True) for _ in range(2))
    first.listen(model)
    for value in (1.0, 2.0):
        model(batch(16, value), scale=3.0)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    ours, theirs = joined(second, model), joined(first, model)
    assert ours.path == theirs.path
    assert torch.equal(ours.example.args[0], theirs.example.args[0])
    assert ours.example.kwargs == theirs.example.kwargs == {"scale": 3.0}


def test_another_number_of_ranks_shares_the_samples_out() -> None:
    entry = {"path": "", "args": (batch(8, 1.0),), "kwargs": {}}
    inputs = LastInputs(64, lambda steps: True)
    inputs.load_state_dict([[entry], [entry, entry]])
    assert len(joined(inputs, Net()).example.args[0]) == 24


def test_large_samples_are_kept_as_long_as_they_fit() -> None:
    model = nn.Flatten()
    inputs = LastInputs(64, lambda steps: True, megabytes=2)
    inputs.listen(model)
    for value in range(40):
        model(torch.full((4, 32, 1024), float(value)))  # 128 kB each
    ((*kept,),) = inputs.state_dict()
    assert sum(entry["args"][0].nbytes for entry in kept) == 2 << 20
    call = joined(inputs, model)
    assert call.samples == 16
    assert call.bytes == 2 << 20
    model(torch.zeros(4, 1024, 1024))
    assert sum(entry["args"][0].nbytes for entry in inputs.state_dict()[0]) == 4 << 20  # one at least
    inputs.stop()


def test_as_many_samples_are_looked_at_as_the_largest_layer_takes() -> None:
    class Wide(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input).expand(-1, 1 << 15)

    model = nn.Sequential(nn.Linear(3, 4), Wide(4, 1), nn.Flatten())
    model.train()
    inputs = LastInputs(64, lambda steps: True, megabytes=1)
    inputs.listen(model)
    model(batch(64, 1.0))
    assert joined(inputs, model).samples == (8 << 20) // (4 << 15)
    assert model.training
    inputs.stop()


def test_what_nobody_asked_for_is_no_error() -> None:
    class Picky(nn.Flatten):
        def forward(self, input: Tensor) -> Tensor:
            if not self.training:
                raise RuntimeError("training only")
            return super().forward(input)

    model = Picky()
    asked, unasked = (LastInputs(16, lambda steps: True, megabytes=1, is_asked=asked) for asked in (True, False))
    for inputs in (asked, unasked):
        inputs.listen(model)
    model(batch(16, 1.0))
    with pytest.raises(PruningError, match="forward of Picky cannot run in eval mode on the 4 samples"):
        asked.last_call(model, 3, False)
    _, reason = unasked.last_call(model, 3, False)
    assert reason == (
        "forward of Picky cannot run in eval mode on the 4 samples that repair and criteria look at (RuntimeError:"
        " training only)"
    )
    for inputs in (unasked, asked):
        inputs.stop()
