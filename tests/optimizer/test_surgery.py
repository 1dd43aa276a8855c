"""Optimizer surgery against NumPy and against torch.optim itself, for every optimizer that torch has."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from lightning_prune.errors import OptimizerStateError
from lightning_prune.optimizer.surgery import (
    check_supported,
    keeps_zeros,
    put_back,
    references,
    reset_state,
    slice_state,
    take,
    zero_state,
)

Make = Callable[[list[Parameter]], Optimizer]
optim = torch.optim
ELEMENTWISE: dict[str, Make] = {
    "Adadelta": partial(optim.Adadelta, weight_decay=0.1),
    "Adadelta-foreach": partial(optim.Adadelta, weight_decay=0.1, foreach=True),
    "Adagrad": partial(optim.Adagrad, weight_decay=0.1, initial_accumulator_value=0.3),
    "Adagrad-fused": partial(optim.Adagrad, fused=True),
    "Adam": partial(optim.Adam, weight_decay=0.1),
    "Adam-amsgrad-foreach": partial(optim.Adam, weight_decay=0.1, amsgrad=True, foreach=True),
    "Adam-tensor-lr": partial(optim.Adam, lr=torch.tensor(0.01), foreach=False),
    "Adam-fused": partial(optim.Adam, weight_decay=0.1, amsgrad=True, fused=True),
    "AdamW": partial(optim.AdamW, weight_decay=0.1),
    "AdamW-fused": partial(optim.AdamW, weight_decay=0.1, fused=True),
    "Adamax": partial(optim.Adamax, weight_decay=0.1),
    "ASGD": partial(optim.ASGD, weight_decay=0.1, t0=1),
    "ASGD-foreach": partial(optim.ASGD, weight_decay=0.1, t0=1, foreach=True),
    "NAdam": partial(optim.NAdam, weight_decay=0.1),
    "NAdam-decoupled": partial(optim.NAdam, weight_decay=0.1, decoupled_weight_decay=True, foreach=True),
    "RAdam": partial(optim.RAdam, weight_decay=0.1),
    "RMSprop": partial(optim.RMSprop, weight_decay=0.1),
    "RMSprop-centered-momentum": partial(optim.RMSprop, weight_decay=0.1, centered=True, momentum=0.9),
    "Rprop": optim.Rprop,
    "Rprop-foreach": partial(optim.Rprop, foreach=True),
    "SGD": partial(optim.SGD, lr=0.1, weight_decay=0.1),
    "SGD-momentum": partial(optim.SGD, lr=0.1, weight_decay=0.1, momentum=0.9, dampening=0.1),
    "SGD-nesterov-maximize": partial(optim.SGD, lr=0.1, momentum=0.9, nesterov=True, maximize=True),
    "SGD-fused": partial(optim.SGD, lr=0.1, weight_decay=0.1, momentum=0.9, fused=True),
    "SparseAdam": partial(optim.SparseAdam, lr=0.1),
}
WHOLE: dict[str, Make] = {  # what a weight gets depends on the others
    "Adafactor": partial(optim.Adafactor, weight_decay=0.1),
    "Adafactor-foreach": partial(optim.Adafactor, weight_decay=0.1, foreach=True),
    "LBFGS": partial(optim.LBFGS, max_iter=3),
    "LBFGS-wolfe": partial(optim.LBFGS, max_iter=3, line_search_fn="strong_wolfe"),
    "Muon": partial(optim.Muon, weight_decay=0.1),
}
EVERY = {**ELEMENTWISE, **WHOLE}
SHAPES = {"matrix": (6, 8), "vector": (6,), "kernel": (6, 8, 3, 3)}
KEEP = {0: torch.tensor([0, 2, 5]), 1: torch.tensor([1, 2, 4, 7])}


def parameters(name: str, seed: int = 0) -> list[Parameter]:
    """A matrix, a vector and a kernel; only matrices for Muon, whole vectors of the machine for fused kernels."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"Muon": [SHAPES["matrix"], (4, 5)], "fused": [(32, 16), (32,), (32, 16, 2, 2)]}
    kind = "fused" if "fused" in name else name
    return [Parameter(torch.randn(shape, generator=generator)) for shape in shapes.get(kind, SHAPES.values())]


def step(optimizer: Optimizer, held: list[Parameter], gradients: list[Tensor]) -> None:
    """One step of the loss whose gradient at the present weights is ``gradients`` (a quadratic one, for L-BFGS)."""
    start = [parameter.detach().clone() for parameter in held]

    def closure() -> Any:
        moved = [p.detach() - s for p, s in zip(held, start, strict=True)]
        for parameter, gradient, move in zip(held, gradients, moved, strict=True):
            dense = gradient + 0.1 * move * (gradient != 0)
            parameter.grad = dense.to_sparse() if isinstance(optimizer, optim.SparseAdam) else dense
        pairs = zip(gradients, moved, strict=True)
        return torch.stack([(g * m + 0.05 * m * m * (g != 0)).sum() for g, m in pairs]).sum()

    optimizer.step(closure)


def gradients_like(held: list[Parameter], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(p.shape, generator=generator) for p in held]


def trained(name: str, steps: int = 3) -> tuple[list[Parameter], Optimizer]:
    held = parameters(name)
    optimizer = EVERY[name](held)
    for seed in range(steps):
        step(optimizer, held, gradients_like(held, seed))
    return held, optimizer


def random_masks(held: list[Parameter]) -> dict[Parameter, Tensor]:
    generator = torch.Generator().manual_seed(7)
    masks = {p: torch.rand(p.shape, generator=generator) > 0.4 for p in held}
    masks[held[0]][2] = False  # a whole row
    masks[held[0]][:, 3] = False
    return masks


def tensors_of(state: dict[str, object]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if isinstance(value, Tensor)}


def test_all_optimizers_of_torch_are_here() -> None:
    every = {name for name in vars(optim) if isinstance(vars(optim)[name], type)} - {"Optimizer"}
    assert {name.split("-")[0] for name in EVERY} == every


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_zero_state_zeroes_pruned_positions_and_nothing_else(name: str) -> None:
    held, optimizer = trained(name)
    before = copy.deepcopy([optimizer.state[p] for p in held])
    masks = random_masks(held)
    zero_state(optimizer, masks)
    for parameter, old in zip(held, before, strict=True):
        assert optimizer.state[parameter].keys() == old.keys()
        for key, value in tensors_of(optimizer.state[parameter]).items():
            shaped = value.shape == parameter.shape
            expected = np.where(masks[parameter].numpy(), old[key].numpy(), 0) if shaped else old[key].numpy()
            np.testing.assert_array_equal(value.numpy(), expected)


def test_zero_state_zeroes_a_mean_only_where_all_that_it_sums_up_is_pruned() -> None:
    held, optimizer = trained("Adafactor")
    masks = random_masks(held)
    before = copy.deepcopy(optimizer.state[held[0]])
    zero_state(optimizer, masks)
    mask, after = masks[held[0]].numpy(), optimizer.state[held[0]]
    for key, axis in (("row_var", 1), ("col_var", 0)):
        expected = np.where(mask.any(axis=axis, keepdims=True), before[key].numpy(), 0)
        np.testing.assert_array_equal(after[key].numpy(), expected)
        assert (expected == 0).any()
        assert (expected != 0).any()
    assert after["step"] == before["step"]


@pytest.mark.parametrize("name", EVERY)
def test_weights_zeroed_with_their_state_stay_zero(name: str) -> None:
    """keeps_zeros speaks the truth, for Muon too: it does move them."""
    held, optimizer = trained(name)
    masks = random_masks(held)
    zero_state(optimizer, masks)
    with torch.no_grad():
        for parameter, mask in masks.items():
            parameter.masked_fill_(~mask, 0)
    before = [p.detach().clone() for p in held]
    for seed in range(10, 13):
        step(optimizer, held, [g * masks[p] for g, p in zip(gradients_like(held, seed), held, strict=True)])
    assert all((p != b).any() for p, b in zip(held, before, strict=True))
    stayed = all((parameter[~mask] == 0).all() for parameter, mask in masks.items())
    assert stayed == keeps_zeros(optimizer)
    assert keeps_zeros(optimizer) == (name != "Muon")


def test_zero_eps_and_unknown_types_count_as_moving_zeros() -> None:
    class Mine(optim.SGD):
        pass

    held = parameters("Adam")
    assert not keeps_zeros(optim.Adam(held, eps=0.0))
    assert not keeps_zeros(optim.Adafactor(held, eps=(0.0, 1e-3)))
    assert not keeps_zeros(Mine(held))


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_slice_then_step_equals_step_then_slice_to_the_last_bit(name: str) -> None:
    """For the fused kernels on whole vectors: their scalar remainder loop rounds unlike their vector loop."""
    held, optimizer = trained(name)
    twins, twin_optimizer = trained(name)
    keep = {0: torch.arange(0, 32, 2), 1: torch.arange(1, 16, 2)} if "fused" in name else KEEP
    gradients = gradients_like(held, 99)
    step(optimizer, held, gradients)
    cut_gradients = cut_weights(twin_optimizer, twins, keep)
    step(twin_optimizer, twins, cut_gradients(gradients))
    for parameter, twin in zip(held, twins, strict=True):
        own = {axis: kept for axis, kept in keep.items() if axis < parameter.dim()}
        assert torch.equal(take(parameter, own), twin)
        for key, value in tensors_of(optimizer.state[parameter]).items():
            assert torch.equal(take(value, own) if value.dim() else value, twin_optimizer.state[twin][key])


def cut_weights(
    optimizer: Optimizer, held: list[Parameter], keep: dict[int, Tensor] = KEEP
) -> Callable[[list[Tensor]], list[Tensor]]:
    """Cut weights and state; returns what cuts gradients in the same way."""
    keeps = {p: {axis: kept for axis, kept in keep.items() if axis < p.dim()} for p in held}
    old_shapes = {p: p.shape for p in held}
    for parameter in held:
        parameter.grad = None
        parameter.data = take(parameter, keeps[parameter])
    slice_state(optimizer, keeps, old_shapes)
    return lambda gradients: [take(g, keeps[p]) for g, p in zip(gradients, held, strict=True)]


@pytest.mark.parametrize("name", EVERY)
def test_training_goes_on_after_slicing(name: str) -> None:
    held, optimizer = trained(name)
    if name == "Muon":
        held[1].requires_grad_(False)
        held = held[:1]
    cut = cut_weights(optimizer, held)
    for parameter in held:
        assert all(value.shape == parameter.shape or value.dim() == 0 or "var" in key
                   for key, value in tensors_of(optimizer.state[parameter]).items())  # fmt: skip
    before = [p.detach().clone() for p in held]
    full = [torch.randn(p.shape) for p in parameters(name)[: len(held)]]
    step(optimizer, held, cut(full))
    assert all((p != b).any() and p.isfinite().all() for p, b in zip(held, before, strict=True))


def test_slicing_adafactor_keeps_the_variance_estimate_of_survivors() -> None:
    """The estimate row · col / mean(row) of a model whose cut rows and columns were pruned does not move."""
    weight = Parameter(torch.randn(6, 8))
    optimizer = optim.Adafactor([weight])
    mask = torch.zeros(6, 8, dtype=torch.bool)
    mask[KEEP[0][:, None], KEEP[1]] = True
    for seed in range(4):
        step(optimizer, [weight], [gradients_like([weight], seed)[0] * mask])

    def estimate() -> np.ndarray:
        row, col = (optimizer.state[weight][key].double().numpy() for key in ("row_var", "col_var"))
        return row * col / row.mean(axis=0, keepdims=True)

    full = estimate()[np.ix_(KEEP[0].numpy(), KEEP[1].numpy())]
    slice_state(optimizer, {weight: KEEP}, {weight: weight.shape})
    np.testing.assert_allclose(estimate(), full, rtol=1e-6)


def test_slicing_adafactor_of_transformers_whose_means_lose_their_axis() -> None:
    weight = Parameter(torch.randn(6, 8))
    optimizer = optim.SGD([weight])
    row, col = torch.rand(6), torch.rand(8)
    optimizer.state[weight] = {"step": 3, "exp_avg_sq_row": row, "exp_avg_sq_col": col, "RMS": 0.5}
    mask = torch.ones(6, 8, dtype=torch.bool)
    mask[1] = False
    zero_state(optimizer, {weight: mask})
    assert row[1] == 0
    slice_state(optimizer, {weight: KEEP}, {weight: weight.shape})
    np.testing.assert_allclose(optimizer.state[weight]["exp_avg_sq_row"], row[KEEP[0]] * 2)
    np.testing.assert_allclose(optimizer.state[weight]["exp_avg_sq_col"], col[KEEP[1]] * 2)
    assert (optimizer.state[weight]["step"], optimizer.state[weight]["RMS"]) == (3, 0.5)


@pytest.mark.parametrize("name", EVERY)
def test_reset_state_is_a_fresh_optimizer(name: str) -> None:
    held, optimizer = trained(name)
    fresh = EVERY[name](copied := [Parameter(p.detach().clone()) for p in held])
    reset_state(optimizer, held)
    gradients = gradients_like(held, 5)
    step(optimizer, held, gradients)
    step(fresh, copied, gradients)
    for parameter, twin in zip(held, copied, strict=True):
        assert torch.equal(parameter, twin)


def test_only_the_named_parameters_are_touched() -> None:
    held, optimizer = trained("Adam")
    other = copy.deepcopy(optimizer.state[held[1]])
    stranger = Parameter(torch.ones(3))
    masks = {held[0]: torch.zeros(6, 8, dtype=torch.bool), stranger: torch.zeros(3, dtype=torch.bool)}
    zero_state(optimizer, masks)
    slice_state(optimizer, {held[0]: KEEP, stranger: {}}, {held[0]: held[0].shape, stranger: stranger.shape})
    reset_state(optimizer, [held[2], stranger])
    assert stranger not in optimizer.state
    assert held[2] not in optimizer.state
    assert all(torch.equal(optimizer.state[held[1]][key], other[key]) for key in other)


def test_param_groups_and_parameters_without_state_are_carried() -> None:
    held = parameters("Adam")
    optimizer = optim.Adam([{"params": held[:1], "lr": 0.1}, {"params": held[1:], "weight_decay": 0.1}])
    held[0].grad = torch.ones_like(held[0])
    optimizer.step()
    zero_state(optimizer, random_masks(held))
    slice_state(optimizer, {p: {0: KEEP[0]} for p in held}, {p: p.shape for p in held})
    assert optimizer.state[held[0]]["exp_avg"].shape == (3, 8)
    assert held[1] not in optimizer.state


def test_memory_format_and_dtype_survive_slicing() -> None:
    kernel = torch.randn(6, 8, 3, 3, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    cut = take(kernel, KEEP)
    assert cut.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_array_equal(cut.float(), kernel.float().numpy()[np.ix_(KEEP[0].numpy(), KEEP[1].numpy())])
    assert take(kernel, {}).data_ptr() != kernel.data_ptr()


def test_one_number_parameters_keep_their_step() -> None:
    scale = Parameter(torch.tensor(2.0))
    optimizer = optim.NAdam([scale])
    step(optimizer, [scale], [torch.tensor(1.0)])
    zero_state(optimizer, {scale: torch.tensor(False)})
    state = optimizer.state[scale]
    assert (state["step"], state["exp_avg"]) == (1, 0)
    assert state["mu_product"] != 0


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("preconditioner", torch.eye(6), r"Odd keeps a tensor of shape \(6, 6\) in its state 'preconditioner' for a"),
        ("pairs", [torch.zeros(4)], "a list of tensors in its state 'pairs'"),
        ("code", torch.zeros(6, 8, dtype=torch.uint8), "torch.uint8, where zero may have another meaning"),
    ],
)
def test_unknown_state_is_refused_by_name_and_nothing_changes(key: str, value: object, text: str) -> None:
    class Odd(optim.SGD):
        pass

    held = parameters("SGD")[:2]
    optimizer = Odd(held, momentum=0.9)
    check_supported(optimizer, held)
    step(optimizer, held, gradients_like(held, 0))
    optimizer.state[held[0]][key] = value
    before = copy.deepcopy([optimizer.state[p]["momentum_buffer"] for p in held])
    masks = {p: torch.zeros(p.shape, dtype=torch.bool) for p in reversed(held)}
    keep = {p: {0: KEEP[0]} for p in held}
    for refused in (
        lambda: check_supported(optimizer, held),
        lambda: zero_state(optimizer, masks),
        lambda: slice_state(optimizer, keep, {p: p.shape for p in held}),
    ):
        with pytest.raises(OptimizerStateError, match=text):
            refused()
    assert all(torch.equal(optimizer.state[p]["momentum_buffer"], b) for p, b in zip(held, before, strict=True))
    check_supported(optimizer, held[1:])


@pytest.mark.parametrize("name", EVERY)
def test_every_optimizer_is_supported_and_slicing_can_be_undone(name: str) -> None:
    held, optimizer = trained(name)
    check_supported(optimizer, held)
    before = copy.deepcopy(optimizer.state_dict())
    kept = references(optimizer)
    slice_state(optimizer, {held[0]: KEEP}, {held[0]: held[0].shape})
    put_back(optimizer, kept)
    after = optimizer.state_dict()
    assert repr(after) == repr(before)
    gradients = gradients_like(held, 3)
    twins, twin_optimizer = trained(name)
    step(optimizer, held, gradients)
    step(twin_optimizer, twins, gradients)
    assert all(torch.equal(p, t) for p, t in zip(held, twins, strict=True))
