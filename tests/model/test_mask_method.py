"""A masked model beside what reads it during a fit: all see the plain model's parameters, zero where pruned."""

import contextlib
import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear
from torch.nn.utils import prune
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from lightning_prune import OneShot, Recipe, Targets
from lightning_prune.model import masks
from lightning_prune.run.run import PruningRun

X = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(1))
Y = torch.arange(8)
TARGETS = ("0.weight", "4.weight")


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))


def keep(model: nn.Module, name: str) -> Tensor:
    weight = masks.dense_parameters(model)[name]
    return torch.rand(weight.shape, generator=torch.Generator().manual_seed(weight.numel())) >= 0.5


def prune_half(model: nn.Module) -> None:
    masks.write(model, [(name, keep(model, name)) for name in TARGETS])


def masked() -> nn.Sequential:
    model = net()
    masks.attach(model, TARGETS)
    prune_half(model)
    return model


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, times: int = 2) -> None:
    for _ in range(times):
        optimizer.zero_grad()
        cross_entropy(model(X), Y).backward()
        optimizer.step()


def computed(model: nn.Sequential) -> Tensor:
    """The weight that the first convolution works with, by its answer to each pixel."""
    layer, answers = model[0], []
    with torch.no_grad():
        for place in range(9):
            pixel = torch.zeros(1, 1, 3, 3)
            pixel.view(-1)[place] = 1
            answers.append(layer(pixel) - layer(torch.zeros(1, 1, 3, 3)))
    return torch.stack(answers).view(9, 4).T.reshape(4, 1, 3, 3)


def is_pruned(tensor: Tensor, model: nn.Module, name: str = "0.weight") -> bool:
    return bool((tensor[~keep(model, name)].abs() < 1e-6).all()) and bool((tensor[keep(model, name)] != 0).any())


def gradient_of(layer: nn.Module) -> Tensor:
    gradient = layer.get_parameter("weight").grad
    assert gradient is not None
    return gradient


def test_names_order_and_identity_are_those_of_the_plain_model() -> None:
    plain, model = net(), net()
    held = [id(p) for p in model.parameters()]
    masks.attach(model, TARGETS)
    prune_half(model)
    assert [id(p) for p in model.parameters()] == held
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in plain.named_parameters()]
    assert [n for n, _ in model.named_buffers()] == [n for n, _ in plain.named_buffers()]
    assert [(n, t.shape) for n, t in model.state_dict().items()] == [
        (n, t.shape) for n, t in plain.state_dict().items()
    ]
    for name in TARGETS:
        expected = torch.where(keep(plain, name), plain.state_dict()[name], 0)
        assert torch.equal(model.state_dict()[name], expected)


def test_a_saved_state_loads_into_a_plain_model() -> None:
    model, buffer = masked(), io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    plain = net()
    plain.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(plain.eval()(X), model.eval()(X))


def test_the_masks_hold_over_a_plain_state() -> None:
    model, dense = masked(), net()
    with torch.no_grad():
        for parameter in dense.parameters():
            parameter.add_(0.25)
    with pytest.warns(UserWarning, match=r"Conv2d.weight among them: they stay zero"):
        model.load_state_dict(dense.state_dict())
    assert torch.equal(
        model.get_parameter("0.weight"), torch.where(keep(dense, "0.weight"), dense.get_parameter("0.weight"), 0)
    )
    assert is_pruned(computed(model), model)


def test_torch_says_so_and_removes_it() -> None:
    model = masked()
    expected = model.eval()(X)
    assert prune.is_pruned(model)
    prune.remove(model[0], "weight")
    prune.remove(model[4], "weight")
    assert not prune.is_pruned(model)
    assert isinstance(model[0].weight, nn.Parameter)
    tables = ("_forward_hooks", "_forward_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks")
    assert not any(getattr(module, table) for module in model.modules() for table in tables)
    assert torch.equal(model(X), expected)


@pytest.mark.parametrize("use_buffers", [False, True])
@pytest.mark.parametrize("is_made_before", [False, True])
def test_an_averaged_model_pairs_the_right_tensors(is_made_before: bool, use_buffers: bool) -> None:
    model, average = net(), None
    if is_made_before:
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=use_buffers)
    masks.attach(model, TARGETS)
    if average is None:
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=use_buffers)
    optimizer = sgd(model)
    step(model, optimizer)
    average.update_parameters(model)
    first = {name: p.detach().clone() for name, p in model.named_parameters()}
    prune_half(model)
    step(model, optimizer)
    average.update_parameters(model)
    for name, parameter in model.named_parameters():
        by_hand = first[name] * 0.9 + parameter.detach() * 0.1
        torch.testing.assert_close(average.module.get_parameter(name).data, by_hand)
    assert list(average.module.state_dict()) == list(model.state_dict())
    average.eval()(X)


def test_states_that_are_zipped_pair_the_right_tensors() -> None:
    """As timm's ModelEmaV2 does it."""
    model = net()
    ema = copy.deepcopy(model)
    masks.attach(model, TARGETS)
    prune_half(model)
    expected = {name: 0.9 * ema.state_dict()[name] + 0.1 * value for name, value in model.state_dict().items()}
    for mine, theirs in zip(ema.state_dict().values(), model.state_dict().values(), strict=True):
        mine.copy_(0.9 * mine + 0.1 * theirs)
    assert all(
        torch.equal(ema.state_dict()[name], value.to(ema.state_dict()[name].dtype)) for name, value in expected.items()
    )


def test_a_momentum_encoder_follows_by_zipped_parameters() -> None:
    model = net()
    encoder = copy.deepcopy(model).requires_grad_(False)
    masks.attach(model, TARGETS)
    prune_half(model)
    step(model, sgd(model))
    expected = {n: encoder.get_parameter(n).lerp(p.detach(), 0.01) for n, p in model.named_parameters()}
    for mine, theirs in zip(encoder.parameters(), model.parameters(), strict=True):
        mine.data.mul_(0.99).add_(theirs.data, alpha=0.01)
    for name, parameter in encoder.named_parameters():
        torch.testing.assert_close(parameter, expected[name])


def test_averages_copied_over_it_are_pruned_in_forward() -> None:
    model, dense = masked(), net()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(dense.get_parameter(name))
    assert is_pruned(computed(model), model)


def test_groups_by_name() -> None:
    def groups(model: nn.Module) -> tuple[list[str], list[str], list[str]]:
        weights = [n for n, _ in model.named_parameters() if n.endswith(".weight")]
        decayed = [n for n, _ in model.named_parameters() if "bias" not in n and "1." not in n]
        return weights, decayed, names_of_transformers(model, (nn.BatchNorm2d,))

    assert groups(masked()) == groups(net())
    assert groups(net())[0] == ["0.weight", "1.weight", "4.weight"]


def names_of_transformers(model: nn.Module, forbidden: tuple[type, ...]) -> list[str]:
    """As transformers.trainer_pt_utils.get_parameter_names finds those that decay."""
    found = []
    for name, child in model.named_children():
        below = [] if isinstance(child, forbidden) else names_of_transformers(child, forbidden)
        found += [f"{name}.{below_name}" for below_name in below]
    return found + [name for name in model._parameters if name != "bias"]


class Tied(nn.Module):
    """A head that reads the embedding's weight without a call of it, and a penalty that does so too."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.body = nn.Embedding(6, 4), nn.Linear(4, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        return linear(self.body(self.words(tokens)), self.words.weight)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_a_weight_that_is_read_outside_its_layer_trains_like_one_with_zeros(kind: Any) -> None:
    """The reference is a plain model whose gradients and weights are masked by hand after each step."""
    options: dict[str, Any] = {"lr": 0.1} | ({"momentum": 0.9} if kind is torch.optim.SGD else {})
    tokens, model, plain = torch.arange(6), Tied(), Tied()
    run = PruningRun(
        [Recipe(schedule=OneShot(0.5, 2), targets=Targets(("words.weight", "body.weight")))], model, None, None
    )
    mine, theirs = kind(model.parameters(), **options), kind(plain.parameters(), **options)
    run.start([mine], [], model)
    for _ in range(5):
        run.prune_if_due(model)
        live = masks.read(model)
        for net_, optimizer in ((model, mine), (plain, theirs)):
            optimizer.zero_grad()
            penalty = sum((p + 0.5).square().sum() for n, p in net_.named_parameters() if n.endswith("weight"))
            (cross_entropy(net_(tokens), tokens) + 0.01 * penalty).backward()
        run.observe(model, mine)
        for name, mask in live.items():
            plain.get_parameter(name).grad.mul_(mask)  # type: ignore[union-attr]
            gradient = model.get_parameter(name).grad
            assert gradient is not None
            assert bool((gradient[~mask] == 0).all())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        mine.step()
        theirs.step()
        run.prune_if_due(model)
        with torch.no_grad():
            for name, mask in masks.read(model).items():
                plain.get_parameter(name).mul_(mask)
                for state in (s for s in theirs.state[plain.get_parameter(name)].values() if s.shape == mask.shape):
                    state.mul_(mask)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter, plain.get_parameter(name))
    assert sum(int((~mask).sum()) for mask in masks.read(model).values()) == 20


def test_weights_that_were_moved_do_not_compute() -> None:
    """As ASAM, noise and a line search move them between two passes."""
    model = masked()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    assert is_pruned(computed(model), model)
    parameters = {name: tensor.detach() for name, tensor in net().named_parameters()}
    expected = masked()
    out = torch.func.functional_call(model.eval(), {**parameters, **dict(net().named_buffers())}, (X,))
    torch.testing.assert_close(out, expected.eval()(X))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_weights(kind: Any) -> None:
    torch.manual_seed(0)
    model, x = kind(3, 4, num_layers=2), torch.randn(5, 2, 3)
    masks.attach(model, ["weight_ih_l0", "weight_hh_l1"])
    masks.write(model, [(n, torch.rand(m.shape) > 0.5) for n, m in masks.read(model).items()])
    twin = copy.deepcopy(model)
    masks.fold(twin)
    with torch.no_grad():
        model.weight_ih_l0.add_(torch.where(masks.read(model)["weight_ih_l0"], 0.0, 1.0))
    assert torch.equal(model(x)[0], twin(x)[0])
    assert all(isinstance(weight, nn.Parameter) for weight in model._flat_weights)
    model(x)[0].square().sum().backward()
    for name, mask in masks.read(model).items():
        gradient = model.get_parameter(name).grad
        assert bool((gradient[~mask] == 0).all())
        assert bool((gradient[mask] != 0).any())
    copy.deepcopy(model)(x)[0].sum().backward()
    masks.fold(model)
    assert torch.equal(model(x)[0], twin(x)[0])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_a_compiled_model_has_masked_gradients_in_one_graph() -> None:
    model = masked().eval()
    expected = model(X)
    torch.testing.assert_close(torch.compile(model, backend="aot_eager", fullgraph=True)(X), expected)
    torch._dynamo.reset()
    compiled = torch.compile(model.train(), backend="aot_eager")
    cross_entropy(compiled(X), Y).backward()
    assert is_pruned(gradient_of(model[0]), model)
    masks.write(model, [("0.weight", torch.zeros(4, 1, 3, 3, dtype=torch.bool))])
    torch.testing.assert_close(torch.compile(model.eval(), backend="aot_eager")(X), model.eval()(X))
    torch._dynamo.reset()


def test_what_a_pass_that_raised_leaves_behind_is_in_nobodys_way() -> None:
    model = masked()
    with contextlib.suppress(RuntimeError):
        model(torch.randn(2, 3, 8, 8))
    assert all(isinstance(p, nn.Parameter) for p in model.parameters())
    for one in (copy.deepcopy(model), model):
        step(one, sgd(one))
        assert is_pruned(one.get_parameter("0.weight"), model)


@pytest.mark.parametrize("change", [nn.Module.double, nn.Module.half, nn.Module.bfloat16])
def test_casts(change: Callable[[nn.Module], nn.Module]) -> None:
    model = masked()
    model(X)
    change(model).eval()
    plain = masks.fold(copy.deepcopy(model))
    x = X.to(next(model.parameters()).dtype)
    assert torch.equal(model(x), plain(x))


def test_autocast_checkpointing_and_inference_mode() -> None:
    model = masked()
    with torch.inference_mode():
        model(X)
    with torch.autocast("cpu", torch.bfloat16):
        cross_entropy(model(X).float(), Y).backward()
    assert is_pruned(gradient_of(model[0]), model)
    model.zero_grad()
    checkpoint(model, X, use_reentrant=False).sum().backward()
    assert is_pruned(gradient_of(model[0]), model)


def test_masks_follow_the_model_to_another_device() -> None:
    model = masked()
    model.to("meta")
    assert masks.read(model)["0.weight"].device.type == "cpu"  # their values are not lost
    model.to_empty(device="cpu")
    model.load_state_dict(masked().state_dict())
    assert is_pruned(computed(model), model)


@pytest.mark.gpu
def test_masks_follow_the_model_to_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    model = masked().cuda()
    assert masks.read(model)["0.weight"].is_cuda
    step_on = torch.randn(8, 1, 8, 8, device="cuda")
    model(step_on).square().sum().backward()
    assert is_pruned(gradient_of(model[0]).cpu(), model.cpu())
