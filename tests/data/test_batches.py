"""What a model is fed with, from whatever gives its data."""

import pytest
import torch
from torch import Tensor, nn

from lightning_prune.data.batches import arguments_of, first_batches, loader_of, sample_count


class Both(nn.Module):
    """Takes two inputs."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b


def test_batches_until_there_are_enough_samples() -> None:
    batches = [torch.zeros(4, 2), (torch.zeros(4, 2), torch.zeros(4)), {"x": torch.zeros(4, 2)}]
    assert [sample_count(batch) for batch in batches] == [4, 4, 4]
    assert len(first_batches(batches, 5)) == 2
    assert len(first_batches(batches, 100)) == 3


def test_arguments_of_a_batch() -> None:
    x, y = torch.zeros(2, 3), torch.ones(2, 3)
    assert arguments_of(Both(), x).args == (x,)
    assert arguments_of(Both(), ((x, y), torch.zeros(2))).args == (x, y)
    named = arguments_of(Both(), {"a": x, "b": y, "label": torch.zeros(2)})
    assert (named.args, list(named.kwargs)) == ((), ["a", "b"])
    with pytest.raises(
        TypeError, match=r"a batch has c, and forward of Both takes a, b: let .* give what forward takes$"
    ):
        arguments_of(Both(), {"c": x})
    way_out = r'such as \[{"a": batch\["a1"\], "b": batch\["b1"\], "y": batch\["y"\]} for batch in loader\]'
    with pytest.raises(TypeError, match=way_out):
        arguments_of(Both(), {"y": x, "a1": x, "b1": y})
    with pytest.raises(TypeError, match="a batch is a tensor of inputs, a dict"):
        arguments_of(Both(), "text")


class Translating(nn.Module):
    def forward(self, source: Tensor, target: Tensor, scale: float = 1.0) -> Tensor:
        return source.sum() + target.sum() * scale


def test_a_pair_is_no_two_inputs() -> None:
    pair, model = (torch.ones(2, 3), torch.ones(2, 4)), Translating()
    way_out = r"needs source, target, and a batch gives one input, since.*\(\(source, target\), targets\)"
    with pytest.raises(TypeError, match=way_out):
        arguments_of(model, pair)
    for batch in ((pair, torch.ones(2)), dict(zip(("source", "target"), pair, strict=True))):
        assert arguments_of(model, batch)(model) == 14


def test_a_data_module_gives_its_training_data() -> None:
    class Data:
        stage = ""

        def prepare_data(self) -> None: ...

        def setup(self, stage: str) -> None:
            self.stage = stage

        def train_dataloader(self) -> list[Tensor]:
            return [torch.zeros(2)]

    data = Data()
    assert len(list(loader_of(data))) == 1
    assert data.stage == "fit"
    with pytest.raises(TypeError, match=r"pass \[tensor\]"):
        loader_of(torch.zeros(3))
