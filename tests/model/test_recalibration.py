"""Batch-norm statistics measured anew are the averages of the data, and nothing else changes."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_prune import Channel, OneShot, Recipe, finalize, recalibrate
from lightning_prune.model import masks
from lightning_prune.run.run import PruningRun


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3)
    )


def batches(*sizes: int) -> list[Tensor]:
    return [torch.randn(size, 1, 8, 8) * 3 + 1 for size in sizes]


def test_is_the_exact_average_over_ragged_batches() -> None:
    net, data = network().double(), [batch.double() for batch in batches(5, 5, 2)]
    recalibrate(net, data)
    with torch.no_grad():
        features = [net[0](batch).numpy() for batch in data]
    counts = np.array([5, 5, 2])
    means = np.stack([f.mean(axis=(0, 2, 3)) for f in features])
    variances = np.stack([f.var(axis=(0, 2, 3), ddof=1) for f in features])
    norm = net[1]
    assert isinstance(norm.running_mean, Tensor)
    assert isinstance(norm.running_var, Tensor)
    assert np.allclose(norm.running_mean.numpy(), counts @ means / 12, rtol=1e-12)
    assert np.allclose(norm.running_var.numpy(), counts @ variances / 12, rtol=1e-12)
    assert int(norm.num_batches_tracked) == 3  # type: ignore[arg-type]


def test_of_equal_batches_is_that_of_torch() -> None:
    net, data = network(), batches(4, 4, 4)
    other = network()
    other.load_state_dict(net.state_dict())
    net[3].p = other[3].p = 0.0  # type: ignore[assignment]
    recalibrate(net, data)
    torch.optim.swa_utils.update_bn(data, other.train())
    for ours, theirs in zip(net.buffers(), other.buffers(), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5)


def test_does_not_depend_on_what_was_there() -> None:
    data, found = batches(4, 3), []
    for fill in (0.0, torch.inf):
        torch.manual_seed(0)
        net = network()
        for norm in (net[1], net[5]):
            norm.running_mean.fill_(fill)  # type: ignore[operator, union-attr]
        found.append([buffer.clone() for buffer in recalibrate(net, data).buffers()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("training", [True, False])
def test_all_else_comes_back(training: bool) -> None:
    net = network().train(training)
    net[1].eval()
    net[1].momentum = None  # type: ignore[assignment]
    before = {name: value.clone() for name, value in net.named_parameters()}
    data, state = batches(4), torch.get_rng_state()
    assert recalibrate(net, data) is net
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in net] == [training, False, training, training, training, training]
    assert net[1].momentum is None
    assert net[5].momentum == 0.1
    assert all(torch.equal(value, before[name]) and value.grad is None for name, value in net.named_parameters())


def test_takes_labelled_batches_and_several_inputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(1)

        def forward(self, one: Tensor, other: Tensor) -> Tensor:
            return self.norm(one + other)

    one, other = torch.randn(6, 1), torch.randn(6, 1)
    net = recalibrate(Two(), [((one, other), torch.zeros(6))])
    assert torch.allclose(net.norm.running_mean, (one + other).mean(0))  # type: ignore[arg-type]
    single = recalibrate(nn.BatchNorm1d(1), [(one, torch.zeros(6))])
    assert torch.allclose(single.running_mean, one.mean(0))  # type: ignore[arg-type]


def test_after_a_cut_masked_and_compact_models_agree() -> None:
    masked, data = network(), batches(8, 8)
    run = PruningRun([Recipe(schedule=OneShot(0.5), granularity=Channel())], masked, (data[0],), None)
    run.start([torch.optim.SGD(masked.parameters(), lr=0.1)], [], masked)
    run.prune_if_due(masked)
    recalibrate(masked, data)
    assert masks.is_masked(masked)
    with torch.no_grad():
        expected = masked.eval()(data[0])
        compact = finalize(masked, data[0])
        recalibrate(compact, data)
        assert compact.get_submodule("0").weight.shape[0] == 2  # type: ignore[union-attr]
        assert torch.allclose(compact(data[0]), expected, atol=1e-5)


class Shared(nn.Module):
    """One batch norm that is called twice, and one that is not called in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.aside = nn.BatchNorm1d(2, affine=False), nn.BatchNorm1d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(3 * self.norm(x) + 1)


def test_a_shared_norm_averages_all_of_its_calls_and_one_not_called_stays() -> None:
    net, data = Shared().double(), [torch.randn(size, 2).double() + 5 for size in (6, 3)]
    net.aside.running_mean.fill_(7)  # type: ignore[union-attr]
    recalibrate(net, data)
    # what is normalised has mean 0, and three times that plus one has mean 1
    expected = sum(batch.sum(0) + len(batch) for batch in data) / 18
    assert np.allclose(net.norm.running_mean.numpy(), expected.numpy())  # type: ignore[union-attr]
    assert net.aside.running_mean.tolist() == [7, 7]  # type: ignore[union-attr]
    assert not net.norm._forward_pre_hooks


def broken() -> Iterator[Tensor]:
    yield torch.randn(4, 1, 8, 8)
    raise OSError("the disk is gone")


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (lambda: [], ValueError, "the loader has no samples"),
        (broken, OSError, "the disk is gone"),
        (lambda: [torch.randn(4, 1, 8, 8), torch.randn(4, 2, 8, 8)], RuntimeError, "channels"),
        (lambda: [{"images": torch.randn(4, 1, 8, 8)}], TypeError, "a batch is a tensor of inputs"),
        (lambda: [torch.full((4, 1, 8, 8), torch.nan)], ValueError, "what enters 1 has NaN or infinite values"),
        (lambda: [[]], TypeError, "a batch is a tensor of inputs"),
    ],
)
def test_after_an_error_the_model_is_as_it_was(data: object, error: type[Exception], message: str) -> None:
    net = recalibrate(network().train(), batches(4))
    before = [buffer.clone() for buffer in net.buffers()]
    with pytest.raises(error, match=message):
        recalibrate(net, data())  # type: ignore[operator]
    assert all(torch.equal(one, other) for one, other in zip(net.buffers(), before, strict=True))
    assert all(module.training for module in net.modules())
    assert net[1].momentum == 0.1


def test_without_batch_norm_there_is_nothing_to_do() -> None:
    with pytest.raises(ValueError, match="Linear has no batch norm with running statistics"):
        recalibrate(nn.Linear(2, 2), [torch.randn(1, 2)])
