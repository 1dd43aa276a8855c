"""A spent learning rate is said once in the log, and only where something can be done about it."""

import logging

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from lightning_prune.model import masks
from lightning_prune.optimizer.carrying import PolicyRuntime
from lightning_prune.optimizer.policies import LRRewind, Mask, OptimizerPolicy, Rewarm

SAID = "the learning rate had fallen to 0.05, from 1, at the pruning event of step 3"


def said(
    caplog: pytest.LogCaptureFixture, rates: list[float], policy: OptimizerPolicy, *, tensor: bool = False
) -> list[str]:
    """Train with these rates, an event after each step from the third on; return what the log has."""
    net = nn.Linear(4, 4)
    masks.attach(net, ["weight"])
    optimizer = torch.optim.SGD(net.parameters(), lr=torch.tensor(1.0) if tensor else 1.0)
    scheduler = LambdaLR(optimizer, lambda step: rates[min(step, len(rates) - 1)])
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
