"""Hidden units of recurrent layers."""

import copy

import pytest
import torch
from compaction_cases import half_of, trained
from graph_oracle import check_exact, sizes
from torch import Tensor, nn

from lightning_prune.compaction import Compaction, compact
from lightning_prune.graph import channel_groups
from lightning_prune.model import masks


class Reader(nn.Module):
    """A layer, a recurrent layer, and a layer that reads its outputs and its last states."""

    def __init__(self, rnn: nn.RNNBase, with_states: bool = True) -> None:
        super().__init__()
        width = 12 * (2 if rnn.bidirectional else 1)
        self.a, self.rnn, self.with_states = nn.Linear(4, 8), rnn, with_states
        self.b, self.c = nn.Linear(width, 3), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        outputs, states = self.rnn(torch.relu(self.a(x)))
        last = states[0] if isinstance(states, tuple) else states
        return self.b(outputs).mean() + self.c(last[-1]) if self.with_states else self.b(outputs)


@pytest.mark.parametrize(
    "rnn",
    [
        nn.LSTM(8, 12, batch_first=True),
        nn.LSTM(8, 12, num_layers=2, bidirectional=True, bias=False),
        nn.GRU(8, 12),
        nn.GRU(8, 12, num_layers=3, batch_first=True, dropout=0.5),
        nn.RNN(8, 12, num_layers=2),
        nn.RNN(8, 12, nonlinearity="relu", bidirectional=True),
    ],
)
def test_hidden_units_go_from_all_layers_directions_and_gates(rnn: nn.RNNBase) -> None:
    groups = check_exact(Reader(rnn), torch.randn(2, 3, 4))
    assert sizes(groups) == {"a": 8, "rnn": 12}
    assert groups.unknown == ()


def test_a_state_that_is_given_has_the_hidden_units_too() -> None:
    class Given(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.start, self.rnn, self.b = nn.Linear(4, 12), nn.GRU(4, 12, batch_first=True), nn.Linear(12, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.rnn(x, torch.tanh(self.start(x.mean(1)))[None])[0])

    assert sizes(check_exact(Given(), torch.randn(2, 3, 4))) == {"start": 12}


class Carried(nn.Module):
    """A cell whose state is in buffers, or begins anew at each call."""

    def __init__(self, cell: nn.RNNCellBase, is_carried: bool, first: float) -> None:
        super().__init__()
        self.i, self.cell, self.o = nn.Linear(6, 8), cell, nn.Linear(12, 3)
        self.count = (2 if isinstance(cell, nn.LSTMCell) else 1) * is_carried
        for name in ("h", "c")[: self.count]:
            self.register_buffer(name, torch.full((1, 12), first))

    def forward(self, x: Tensor) -> Tensor:
        state = [self.get_buffer(name) for name in ("h", "c")[: self.count]]
        given = None if not state else state[0] if len(state) == 1 else tuple(state)
        made = self.cell(self.i(x).relu(), given)
        made = made if isinstance(made, tuple) else (made,)
        for buffer, value in zip(state, made, strict=False):
            buffer.copy_(value)
        return self.o(made[0])


@pytest.mark.parametrize("kind", ["LSTMCell", "GRUCell", "RNNCell"])
@pytest.mark.parametrize(("is_carried", "bias", "first"), [(True, True, 0.0), (True, False, 0.5), (False, True, 0.0)])
def test_a_cell_loses_hidden_units_and_so_does_its_state(kind: str, is_carried: bool, bias: bool, first: float) -> None:
    model = Carried(getattr(nn, kind)(8, 12, bias=bias), is_carried, first).double().eval()
    x = torch.randn(1, 6, dtype=torch.float64)
    groups = channel_groups(model, x)
    assert {g.size for g in groups if g.prunable} == {8, 12}
    plan = Compaction.from_keep(groups, {g.name: range(0, g.size, 2) for g in groups if g.prunable})
    masked = copy.deepcopy(model)
    plan.mask(masked)
    report = compact(model, plan, x)
    assert (model.cell.input_size, model.cell.hidden_size, report.put_back) == (4, 6, {})
    assert all(tuple(buffer.shape) == (1, 6) for buffer in model.buffers())
    with torch.no_grad():
        for _ in range(64):
            x = torch.randn(1, 6, dtype=torch.float64)
            assert (model(x) - masked(x)).abs().max() < 1e-14


def test_a_class_of_ones_own_keeps_its_sizes() -> None:
    class Own(nn.GRUCell):
        def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
            return super().forward(input, hx) * 2

    groups = channel_groups(Carried(Own(8, 12), True, 0.0).eval(), torch.randn(1, 6))
    assert not [group for group in groups if group.prunable]


def test_a_projected_lstm_keeps_its_sizes() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 8), nn.LSTM(8, 12, proj_size=5))
    groups = channel_groups(model, torch.randn(2, 3, 4))
    assert sizes(groups) == {"0": 6}
    assert "keeps its sizes" in groups["1"].reason


def test_compaction_sets_the_sizes_and_training_goes_on() -> None:
    model, x = trained(Reader(nn.LSTM(8, 12, num_layers=2), with_states=False)), torch.randn(5, 2, 4)
    groups = channel_groups(model, x)
    names = [name for name in masks.dense_parameters(model) if "weight" in name]
    masks.attach(model, names, is_structured=True)
    plan = Compaction.from_keep(groups, half_of(groups))
    plan.mask(model)
    masked = copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters())
    report = compact(model, plan, x, optimizer)
    assert (model.rnn.input_size, model.rnn.hidden_size, report.put_back) == (4, 6, {})
    torch.testing.assert_close(model(x), masked(x))
    masks.fold(model)
    torch.testing.assert_close(model(x), masked(x))
    model(x).sum().backward()
    optimizer.step()
    fresh = plan.rebuild(Reader(nn.LSTM(8, 12, num_layers=2), with_states=False))
    fresh.load_state_dict(model.state_dict())
    torch.testing.assert_close(fresh(x), model(x))


class Stateful(nn.Module):
    """Makes its first states itself, in the size that it holds."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.lstm, self.out = 12, nn.LSTM(4, 12, batch_first=True), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        h, c = x.new_zeros(1, x.shape[0], self.hidden), torch.zeros((1, x.size(0), self.hidden), dtype=x.dtype)
        return self.out(self.lstm(x, (h, c))[0][:, -1])


class Looping(nn.Module):
    """A loop of its own over a state with two axes, as state space models have it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.states = 8, 4
        self.a, self.b, self.read, self.c = nn.Linear(4, 8), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(8, 2)
        self.decay = nn.Parameter(torch.rand(8, 4))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(x.shape[0], self.inner, self.states, dtype=x.dtype)
        for t in range(x.shape[1]):
            h = self.decay * h + self.a(x[:, t]).unsqueeze(-1) * self.b(x[:, t]).unsqueeze(1)
        return self.c((h @ self.read(x[:, -1]).unsqueeze(-1)).squeeze(-1))


@pytest.mark.parametrize(("model", "name", "held"), [(Stateful(), "lstm", "hidden"), (Looping(), "decay", "inner")])
def test_a_first_state_of_zeros_is_made_in_the_size_that_is_left(model: nn.Module, name: str, held: str) -> None:
    model, x = model.double(), torch.rand(3, 5, 4, dtype=torch.float64)
    groups = channel_groups(model, x)
    assert groups[name].prunable
    before = getattr(model, held)
    report = compact(model, Compaction.from_keep(groups, {name: range(before // 2)}), x)
    assert not report.put_back
    assert getattr(model, held) == before // 2
    assert max(report.errors.values()) < 1e-12
