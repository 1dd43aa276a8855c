"""Models and optimizers on the way to a snapshot, and the bits of all that it holds."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from compaction_cases import RESIDUAL_INPUT, Residual, half_of, trained
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Adafactor, Adam, AdamW, Optimizer

from lightning_prune import Compaction, channel_groups, compact
from lightning_prune.compaction import applied_plan
from lightning_prune.model import masks
from lightning_prune.optimizer.surgery import zero_state

OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "AdamW": lambda p: AdamW(p, lr=0.01, amsgrad=True),
    "AdamW, tensor lr": lambda p: AdamW(p, lr=torch.tensor(0.01), capturable=False, foreach=False),
    "fused Adam": lambda p: Adam(p, lr=0.01, fused=True),
    "SGD": lambda p: SGD(p, lr=0.01, momentum=0.9, nesterov=True),
    "LBFGS": lambda p: LBFGS(p, lr=0.1, max_iter=3, history_size=4),
    "Adafactor": lambda p: Adafactor(p, lr=0.01),
}

GROUPS: dict[Any, Any] = {}
"""Channel groups by the shapes of the parameters; tracing takes a second."""


def bits(value: Any) -> Any:
    """Everything about a value that can be compared: bytes, types, memory formats, order."""
    if isinstance(value, Tensor):
        raw = value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes() if value.numel() else b""
        return type(value), value.dtype, tuple(value.shape), value.stride(), raw
    if isinstance(value, dict):
        return [(key, bits(item)) for key, item in value.items()]
    if isinstance(value, list | tuple):
        return type(value), [bits(item) for item in value]
    return repr(value)


def form(model: nn.Module, *optimizers: Optimizer) -> Any:
    """All that a rollback promises of a model and its optimizers, Parameter objects included."""
    parameters = [id(p) for p in model.parameters()]
    states = [
        ([bits(o.state[p]) for p in group["params"]], bits({k: v for k, v in group.items() if k != "params"}))
        for o in optimizers
        for group in o.param_groups
    ]
    sizes = {n: {k: v for k, v in m.__dict__.items() if isinstance(v, int | tuple)} for n, m in model.named_modules()}
    tensors = bits(dict(sorted(masks.dense_names(model).items()))), bits(masks.read(model))
    return parameters, tensors, set(masks.structured_names(model)), applied_plan(model), sizes, states


def step(model: nn.Module, optimizer: Optimizer, seed: int) -> None:
    dtype = next(model.parameters()).dtype
    images = torch.randn(4, 2, 4, 4, generator=torch.Generator().manual_seed(seed)).to(dtype)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model.train()(images).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]


def mask_some(model: nn.Module, optimizer: Optimizer, seed: int) -> Any:
    """An event: the channels of a random half are masked out; returns the plan that removes them."""
    shapes = tuple(p.shape for p in model.parameters())
    if shapes not in GROUPS:
        GROUPS[shapes] = channel_groups(copy.deepcopy(model).float(), RESIDUAL_INPUT)
    plan = Compaction.from_keep(GROUPS[shapes], half_of(GROUPS[shapes], seed))
    masks.attach(model, [n for n in masks.dense_parameters(model) if n in plan.removed], is_structured=True)
    gone = {name: torch.ones_like(mask) for name, mask in masks.read(model).items()}
    for name, axes in plan.removed.items():
        for axis, indices in axes.items():
            if name in gone:
                gone[name].index_fill_(axis, torch.tensor(indices), False)
    masks.write(model, gone.items())
    zero_state(optimizer, masks.masks_by_parameter(model))
    return plan


def case(name: str, dtype: torch.dtype = torch.float32, begin: str = "dense") -> tuple[nn.Module, Optimizer]:
    model = trained(Residual()).to(dtype)
    optimizer = OPTIMIZERS[name](model.parameters())
    for seed in range(2):
        step(model, optimizer, seed)
    if begin != "dense":
        plan = mask_some(model, optimizer, 3)
        if begin == "compact":
            compact(model, plan, optimizer=optimizer)
        step(model, optimizer, 4)
    return model, optimizer


def twin(model: nn.Module, optimizer: Optimizer) -> tuple[nn.Module, Optimizer]:
    """A copy that trains on as if nothing had happened."""
    copied, its = copy.deepcopy((model, optimizer))
    if isinstance(its, LBFGS):  # torch leaves these out of a copy
        its._params, its._numel_cache = its.param_groups[0]["params"], None
    return copied, its


def check_goes_on(model: nn.Module, optimizer: Optimizer, reference: tuple[nn.Module, Optimizer]) -> None:
    for seed in range(3):
        step(model, optimizer, 20 + seed)
        step(*reference, 20 + seed)
    (_, *left), (_, *right) = form(model, optimizer), form(*reference)
    assert left == right


class Counter:
    """A run of its own: plain values and a tensor that it goes on writing into."""

    def __init__(self) -> None:
        self.seen, self.total = [1], torch.ones(2)

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen, "total": self.total}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seen, self.total = state_dict["seen"], state_dict["total"]
