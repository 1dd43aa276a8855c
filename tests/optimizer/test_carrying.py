"""The policy runtime on plain training loops: what changes, what stays, and that a resumed run is the same run."""

import copy
import io
import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer, lr_scheduler

from lightning_prune.errors import CheckpointError, OptimizerStateError, PruningError
from lightning_prune.model import masks
from lightning_prune.optimizer.carrying import PolicyRuntime
from lightning_prune.optimizer.policies import Keep, LRRewind, Mask, OptimizerPolicy, Reset, Rewarm, RewindWeights

SCHEDULERS: dict[str, Callable[[Optimizer], lr_scheduler.LRScheduler]] = {
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.LinearLR(o, total_iters=4), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, total_iters=4),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=20),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=5),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, base_lr=0.01, max_lr=0.1, step_size_up=4),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 1 / (1 + epoch)),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, total_iters=9),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [3, 7]),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda epoch: 0.9),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.5, total_steps=40),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, total_iters=20),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1, factor=0.5),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, total_iters=3), lr_scheduler.CosineAnnealingLR(o, 20)], milestones=[3]
    ),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2, 0.5),
}
OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.05),
    "AdamW-tensor-lr": lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.05), foreach=False),
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Tiny tensors: a second thread costs more than it brings."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))
    masks.attach(model, ["0.weight", "3.weight"])
    return model


class Run:
    """A training loop in miniature, in the order that Lightning has: optimizer, scheduler, then the runtime."""

    def __init__(
        self,
        policies: OptimizerPolicy | tuple[OptimizerPolicy, ...],
        optimizer: str = "AdamW",
        scheduler: str | None = "CosineAnnealingLR",
    ) -> None:
        self.model = network()
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        self.scheduler = SCHEDULERS[scheduler](self.optimizer) if scheduler else None
        self.runtime = PolicyRuntime(policies, list(masks.masks_by_parameter(self.model)))
        self.step = 0
        self.rates: list[float] = []
        self.rates_in_step: list[float] = []
        self.momenta: list[float | None] = []
        self.optimizer.register_step_post_hook(self._record)

    def _record(self, optimizer: Optimizer, *_: object) -> None:
        self.rates_in_step.append(float(optimizer.param_groups[0]["lr"]))

    def start(self, **more: Any) -> "Run":
        schedulers = [self.scheduler] if self.scheduler else []
        self.runtime.start([self.optimizer], schedulers, self.model, step=self.step, **more)
        return self

    def train(self, steps: int) -> "Run":
        for _ in range(steps):
            inputs = torch.randn(16, 6, generator=torch.Generator().manual_seed(self.step))

            def closure(inputs: Tensor = inputs) -> Any:
                self.optimizer.zero_grad()
                loss = self.model(inputs).square().mean()
                loss.backward()
                return loss

            self.optimizer.step(closure)
            self.rates.append(float(self.optimizer.param_groups[0]["lr"]))
            self.momenta.append(self.optimizer.param_groups[0].get("momentum"))
            if isinstance(self.scheduler, lr_scheduler.ReduceLROnPlateau):
                self.scheduler.step(self.step)
            elif self.scheduler:
                self.scheduler.step()
            self.step += 1
            self.runtime.after_step(self.step, self.model)
        return self

    def event(self, sparsity: float) -> "Run":
        generator = torch.Generator().manual_seed(self.step)
        new = {name: torch.rand(mask.shape, generator=generator) > sparsity for name, mask in self.masks.items()}
        masks.write(self.model, new.items())
        self.runtime.after_event(self.step, masks.masks_by_parameter(self.model), self.model)
        return self

    @property
    def masks(self) -> dict[str, Tensor]:
        return masks.read(self.model)

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "masks": self.masks,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict() if self.scheduler else None,
            "runtime": self.runtime.state_dict(),
            "step": self.step,
        }

    def restore(self, state: dict[str, Any]) -> "Run":
        self.model.load_state_dict(state["model"])
        masks.put(self.model, state["masks"])
        self.runtime.load_state_dict(state["runtime"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler:
            self.scheduler.load_state_dict(state["scheduler"])
        self.step = state["step"]
        return self.start()


def same(left: Any, right: Any) -> bool:
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return torch.equal(left, right) if isinstance(left, Tensor) else left == right


def test_mask_keeps_weights_and_state_at_zero_under_training() -> None:
    run = Run(Mask()).start().train(3).event(0.5).train(4)
    assert not run.runtime.moves_zeros(run.optimizer)
    for parameter, mask in masks.masks_by_parameter(run.model).items():
        assert (parameter[~mask] == 0).all()
        assert (run.optimizer.state[parameter]["exp_avg"][~mask] == 0).all()
        assert run.optimizer.state[parameter]["step"] == 7


def test_keep_leaves_the_state_and_says_that_weights_move() -> None:
    run = Run(Keep()).start().train(3)
    before = copy.deepcopy(run.optimizer.state_dict())
    run.event(0.5)
    assert same(run.optimizer.state_dict(), before)
    assert run.runtime.moves_zeros(run.optimizer)


def test_reset_forgets_the_state_of_masked_parameters_only() -> None:
    run = Run(Reset()).start().train(3).event(0.5)
    owned = set(masks.masks_by_parameter(run.model))
    assert set(run.optimizer.state) == set(run.model.parameters()) - owned


@pytest.mark.parametrize("optimizer", ["AdamW-tensor-lr", "SGD"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_rewarm_ramps_and_no_scheduler_sees_it(optimizer: str, scheduler: str) -> None:
    warmed, plain = Run(Rewarm(4), optimizer, scheduler).start(), Run(Mask(), optimizer, scheduler).start()
    for run in (warmed, plain):
        run.train(3).event(0.4).train(6)
    factors = [1, 1, 1, 0.25, 0.5, 0.75, 1, 1, 1]
    np.testing.assert_allclose(warmed.rates_in_step, np.array(plain.rates) * factors, rtol=1e-6)
    assert warmed.rates == plain.rates
    assert same(warmed.scheduler.state_dict(), plain.scheduler.state_dict())  # pyright: ignore[reportOptionalMemberAccess]


def test_a_new_event_starts_a_new_ramp_and_stop_ends_it() -> None:
    run = Run(Rewarm(3), scheduler=None).start().train(1).event(0.2).train(2).event(0.4).train(1)
    run.runtime.stop()
    run.train(1)
    np.testing.assert_allclose(np.array(run.rates_in_step) / 0.05, [1, 1 / 3, 2 / 3, 1 / 3, 1])


def test_a_step_that_fails_leaves_the_rate_to_stop_and_is_not_counted() -> None:
    run = Run(Rewarm(4), scheduler=None).start().train(1).event(0.2)

    def failing() -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.optimizer.step(failing)
    run.runtime.stop()
    assert run.optimizer.param_groups[0]["lr"] == 0.05
    run.start()
    with pytest.raises(KeyboardInterrupt):
        run.optimizer.step(failing)
    run.train(1)
    assert run.rates_in_step[-1] == pytest.approx(0.05 / 4)
    assert run.rates[-1] == 0.05


@pytest.mark.parametrize("optimizer", ["AdamW-tensor-lr", "SGD"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("step", [0, 2])
def test_lr_rewind_replays_the_rates(optimizer: str, scheduler: str, step: int) -> None:
    run = Run(LRRewind(step), optimizer, scheduler).start().train(5)
    run.event(0.3).train(3)
    assert run.rates[5:8] == run.rates[step : step + 3]
    assert run.momenta[5:8] == run.momenta[step : step + 3]


def test_rewind_weights_restores_weights_and_buffers_and_keeps_zeros() -> None:
    run = Run(RewindWeights(2)).start().train(2)
    early = {name: tensor.detach().clone() for name, tensor in masks.dense_names(run.model).items()}
    run.train(3).event(0.5)
    for name, tensor in masks.dense_names(run.model).items():
        mask = run.masks.get(name)
        expected = early[name].numpy() if mask is None else np.where(mask.numpy(), early[name].numpy(), 0)
        np.testing.assert_array_equal(tensor.detach().numpy(), expected)
    weight: Any = run.model.get_submodule("0").weight
    assert torch.equal(weight, masks.dense_names(run.model)["0.weight"])
    run.train(2).event(0.7)
    assert torch.equal(masks.dense_names(run.model)["1.running_mean"], early["1.running_mean"])


POLICIES: list[tuple[OptimizerPolicy, ...]] = [
    (Mask(),),
    (Keep(),),
    (Reset(), Rewarm(4)),
    (LRRewind(1), Rewarm(5)),
    (LRRewind(), RewindWeights(2), Reset()),
]


@pytest.mark.parametrize(
    ("policies", "scheduler", "stop"),
    [(policies, "OneCycleLR", stop) for policies in POLICIES for stop in (2, 4, 6)]
    + [((LRRewind(1), Rewarm(5)), scheduler, 6) for scheduler in SCHEDULERS],
)
def test_a_resumed_run_is_the_same_run_to_the_last_bit(
    policies: tuple[OptimizerPolicy, ...], scheduler: str, stop: int
) -> None:
    """Stopped before, at and after the event of step 4; the checkpoint is read with weights_only=True."""

    def go_on(run: Run) -> Run:
        while run.step < 9:
            run.train(1)
            if run.step in (4, 7):
                run.event(run.step / 10)
        return run

    whole = go_on(Run(policies, "SGD", scheduler).start())
    first = Run(policies, "SGD", scheduler).start()
    first.train(stop) if stop < 4 else first.train(4).event(0.4).train(stop - 4)
    file = io.BytesIO()
    torch.save(first.state(), file)
    file.seek(0)
    resumed = Run(policies, "SGD", scheduler).restore(torch.load(file, weights_only=True))
    assert same(go_on(resumed).state(), whole.state())


def test_only_optimizers_with_a_target_take_part() -> None:
    model, other = network(), nn.Linear(2, 2)
    mine, others = torch.optim.SGD(model.parameters(), lr=0.1), torch.optim.SGD(other.parameters(), lr=0.1)
    schedulers = [lr_scheduler.ExponentialLR(mine, 0.5), lr_scheduler.ExponentialLR(others, 0.5)]
    runtime = PolicyRuntime((LRRewind(), Rewarm(2)), list(masks.masks_by_parameter(model)))
    runtime.start([others, mine], schedulers, model)
    for step in (1, 2):
        for optimizer, scheduler in zip((mine, others), schedulers, strict=True):
            optimizer.step()
            scheduler.step()
        runtime.after_step(step, model)
    runtime.after_event(2, masks.masks_by_parameter(model), model)
    assert mine.param_groups[0]["lr"] == 0.1
    assert others.param_groups[0]["lr"] == 0.025
    assert not others._optimizer_step_pre_hooks
    runtime.stop()
    assert not mine._optimizer_step_pre_hooks
    assert not mine._optimizer_step_post_hooks


def test_snapshots_lie_on_the_cpu_once_for_tied_weights() -> None:
    run = Run(RewindWeights(0))
    run.model.append(nn.Linear(8, 3))  # pyright: ignore[reportCallIssue]
    tied: Any = run.model.get_submodule("4")
    tied.bias = run.model.get_submodule("3").bias
    run.start()
    weights = run.runtime.state_dict()["weights"]
    assert "3.bias" in weights
    assert "4.bias" not in weights
    assert all(tensor.device.type == "cpu" for tensor in weights.values())


def test_policies_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValueError, match=r"return a scheduler from configure_optimizers, or leave LRRewind out"):
        Run(LRRewind(), scheduler=None).start()
    with pytest.raises(ValueError, match=r"RewindWeights\(step=9\) goes back to step 9, .* first event at step 4"):
        Run(RewindWeights(9)).start(first_event=4)
    run = Run((RewindWeights(9), Mask())).start().train(3)
    before = copy.deepcopy(run.optimizer.state_dict())
    with pytest.raises(PruningError, match=r"RewindWeights\(step=9\) has no snapshot .* at the event of step 3"):
        run.event(0.2)
    assert same(run.optimizer.state_dict(), before)


def test_state_of_another_run_is_refused() -> None:
    state = Run(Rewarm(3)).start().runtime.state_dict() | {"ramps": [None, 2]}
    run = Run(Rewarm(3))
    run.runtime.load_state_dict(state)
    with pytest.raises(CheckpointError, match="of 2 optimizers with pruned parameters, this run has 1"):
        run.start()


def test_weights_of_another_shape_cannot_be_rewound() -> None:
    run = Run(RewindWeights(0)).start().train(1)
    norm: Any = run.model.get_submodule("1")
    norm.running_mean = torch.zeros(5)
    with pytest.raises(PruningError, match=r"1.running_mean was of shape \(8,\) .* now has shape \(5,\)"):
        run.runtime.after_event(1, {}, run.model)


def test_an_optimizer_that_cannot_be_carried_is_refused_after_its_first_step() -> None:
    class Odd(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            for parameter in self.param_groups[0]["params"]:
                self.state[parameter]["factor"] = torch.eye(11)
            return super().step(closure)

    model = network()
    optimizer = Odd(model.parameters(), lr=0.1)
    parameters: list[Parameter] = list(masks.masks_by_parameter(model))
    for policy in (Keep(), Reset(), Mask()):
        runtime = PolicyRuntime(policy, parameters)
        runtime.start([optimizer], [], model)
        if not isinstance(policy, Mask):
            optimizer.step()
            runtime.after_step(1, model)
            optimizer.state.clear()
    optimizer.step()
    with pytest.raises(OptimizerStateError, match=r"Odd keeps a tensor of shape .* 'factor'"):
        runtime.after_step(1, model)


SAID = "the learning rate had fallen to 0.05, from 1, at the pruning event of step 3"


def said(
    caplog: pytest.LogCaptureFixture, rates: list[float], policy: OptimizerPolicy, *, tensor: bool = False
) -> list[str]:
    """Train with these rates, an event after each step from the third on; return what the log has."""
    net = nn.Linear(4, 4)
    masks.attach(net, ["weight"])
    optimizer = torch.optim.SGD(net.parameters(), lr=torch.tensor(1.0) if tensor else 1.0)
    scheduler = lr_scheduler.LambdaLR(optimizer, lambda step: rates[min(step, len(rates) - 1)])
    runtime = PolicyRuntime(policy, list(masks.masks_by_parameter(net)))
    runtime.start([optimizer], [scheduler], net)
    with caplog.at_level(logging.WARNING):
        for step in range(1, 6):
            optimizer.step()
            scheduler.step()
            runtime.after_step(step, net)
            if step >= 3:
                runtime.after_event(step, masks.masks_by_parameter(net), net)
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("policy", [Mask(), Rewarm(2)])
def test_a_rate_below_a_tenth_of_the_highest_is_said_once(
    caplog: pytest.LogCaptureFixture, policy: OptimizerPolicy
) -> None:
    (message,) = said(caplog, [0.2, 1.0, 0.5, 0.05, 0.04, 0.03], policy)
    assert message.startswith(SAID)
    assert "LRRewind()" in message


@pytest.mark.parametrize(
    ("rates", "policy", "tensor"),
    [
        ([1.0, 1.0, 0.5, 0.1, 0.1, 0.1], Mask(), False),  # a tenth is enough
        ([0.01, 0.02, 0.03, 0.05, 0.2, 1.0], Mask(), False),  # a warm-up: nothing has fallen
        ([1.0, 1.0, 0.5, 0.05, 0.05, 0.05], LRRewind(), False),  # it goes back up
        ([1.0, 1.0, 0.5, 0.05, 0.05, 0.05], Mask(), True),  # not waited for
    ],
)
def test_other_rates_are_not_spoken_of(
    caplog: pytest.LogCaptureFixture, rates: list[float], policy: OptimizerPolicy, tensor: bool
) -> None:
    assert said(caplog, rates, policy, tensor=tensor) == []
