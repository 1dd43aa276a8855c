"""Pruned checkpoints in classes without the mixin: by Lightning's call, by hand, under other names."""

import copy
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from packages import SAFELY, L
from support import loader, trainer
from torch import Tensor, nn

from lightning_prune import Channel, OneShot, PruningCallback, Recipe, adopting, load
from lightning_prune.checkpoints import state as checkpoints
from lightning_prune.compaction import applied_plan, plan_told_by
from lightning_prune.errors import CheckpointError
from lightning_prune.model import masks

X = torch.randn(3, 1, 6, 6, generator=torch.Generator().manual_seed(3))
RAW = torch.load, nn.Module.load_state_dict


class Plain(L.LightningModule):
    """As a project writes it: no mixin, no example; a grouped convolution, whose groups no shape tells."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(
            *(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.Conv2d(width, width, 3, groups=width), nn.Flatten(), nn.Linear(4 * width, 2)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self(X).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)


class Around(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = Plain()


@pytest.fixture(scope="module", params=["compact", "masked", "structured"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Plain]:
    """A checkpoint of a run at its end, or under way, and the model that it is of."""
    folder, model = tmp_path_factory.mktemp("adopting"), Plain()
    options: dict[str, Any] = {} if request.param == "masked" else {"granularity": Channel()}
    callback = PruningCallback(Recipe(schedule=OneShot(0.5, 2), **options), finalize=request.param == "compact")
    run = trainer(folder, callback)
    run.fit(model, loader())
    run.save_checkpoint(folder / "a.ckpt")
    return folder / "a.ckpt", model.eval()


def check(loaded: nn.Module, model: Plain) -> None:
    assert torch.equal(loaded.eval()(X), model(X))
    assert (torch.load, nn.Module.load_state_dict) == RAW


def test_load(saved: tuple[Path, Plain]) -> None:
    path, model = saved
    loaded = load(Plain, path, **SAFELY)
    assert type(loaded) is Plain
    check(loaded, model)
    assert applied_plan(loaded) == applied_plan(model)
    assert masks.read(loaded).keys() == masks.read(model).keys()
    assert masks.structured_names(loaded) == masks.structured_names(model)


def test_class_call_inside(saved: tuple[Path, Plain]) -> None:
    path, model = saved
    with adopting(), adopting():
        loaded = Plain.load_from_checkpoint(path, **SAFELY)
    check(loaded, model)


def test_own_loader_that_renames(saved: tuple[Path, Plain]) -> None:
    path, model = saved
    inner, outer = Plain().net, Around()
    with adopting():
        state = torch.load(path, weights_only=True)["state_dict"]
        inner.load_state_dict({name.removeprefix("net."): tensor for name, tensor in state.items()})
        outer.load_state_dict({f"model.{name}": tensor for name, tensor in state.items()})
    check(inner, model)
    check(outer.model, model)
    plan = applied_plan(model)
    assert applied_plan(outer) == (None if plan is None else checkpointed(plan.under("model"), plan))


def checkpointed(under: Any, plan: Any) -> Any:
    """Group names are those of the run, wherever its tensors have gone."""
    return type(under)(under.shapes, {n: under.removals[f"model.{n}"] for n in plan.removals}, under.attributes)


def test_bare_state_dict(saved: tuple[Path, Plain], tmp_path: Path) -> None:
    _, model = saved
    torch.save(model.state_dict(), tmp_path / "bare.pt")
    loaded = Plain()
    with adopting():
        loaded.load_state_dict(torch.load(tmp_path / "bare.pt", weights_only=True))
    assert loaded.net[0].weight.shape == model.net[0].weight.shape
    check(loaded, model)  # the groups of the convolution too, which no shape tells
    assert applied_plan(loaded) == applied_plan(model)


def test_state_dict_says_its_plan(saved: tuple[Path, Plain]) -> None:
    _, model = saved
    state = model.state_dict()
    plan = applied_plan(model)
    assert plan_told_by(state) == (None if plan is None else plan.to_json())
    assert plan_told_by(copy.deepcopy(model).state_dict()) == plan_told_by(state)
    assert plan_told_by(Plain().state_dict()) is None
    assert list(state) == list(Plain().state_dict())
    around = Around()
    around.model = model
    assert plan_told_by(around.state_dict()) is None  # its names have a prefix


def test_state_that_was_read_by_other_means() -> None:
    small = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    loaded = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    with adopting():
        loaded.load_state_dict({name: tensor.clone() for name, tensor in small.state_dict().items()})
    assert loaded[0].out_features == loaded[2].in_features == 3
    assert torch.equal(loaded(torch.ones(1, 4)), small(torch.ones(1, 4)))


def test_state_in_a_bundle_of_a_project(tmp_path: Path) -> None:
    model = Plain()
    run = trainer(tmp_path, PruningCallback(Recipe(schedule=OneShot(0.5, 2), granularity=Channel())))
    run.fit(model, loader())
    bundle = {"kind": "Plain", "parts": {"task_model_state_dict": model.net[:3].state_dict()}}
    torch.save(bundle, tmp_path / "bundle.pt")
    whole = Plain()
    with adopting():
        whole.net[:3].load_state_dict(torch.load(tmp_path / "bundle.pt")["parts"]["task_model_state_dict"])
    assert whole.net[0].out_channels == model.net[0].out_channels < 8  # type: ignore
    assert torch.equal(whole.net[0].weight, model.net[0].weight)  # type: ignore


def test_failing_load_leaves_no_patch(saved: tuple[Path, Plain]) -> None:
    path, _ = saved
    with pytest.raises(CheckpointError, match="build it with the same arguments"):
        load(Plain, path, width=6, **SAFELY)
    assert (torch.load, nn.Module.load_state_dict) == RAW
    with pytest.raises(FileNotFoundError):
        load(Plain, path.with_name("none.ckpt"))
    assert (torch.load, nn.Module.load_state_dict) == RAW


def test_other_files_load_as_ever(tmp_path: Path) -> None:
    model, other = nn.Linear(4, 2), nn.Linear(4, 2)
    torch.save(model.state_dict(), tmp_path / "a.pt")
    with adopting():
        other.load_state_dict(torch.load(tmp_path / "a.pt", weights_only=True))
        other.load_state_dict({name: tensor.clone() for name, tensor in model.state_dict().items()})
    assert torch.equal(other.weight, model.weight)
    assert checkpoints.KEY not in torch.load(tmp_path / "a.pt", weights_only=True)


def mlp(*widths: int) -> nn.Sequential:
    layers = [layer for sizes in pairwise(widths) for layer in (nn.Linear(*sizes), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


class Apart(nn.Module):
    """Two layers that no container says the order of, and an example of what they take."""

    example_input_array = torch.zeros(1, 4)

    def __init__(self, width: int = 8, outputs: int = 2) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, width), nn.Linear(8, 8)
        self.last = nn.Linear(8, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.first(x)).relu())


def shapes_of(model: nn.Module) -> str:
    return f"{model} {[tuple(tensor.shape) for tensor in model.state_dict().values()]}"


class TestWhatPruningDoesNotExplain:
    @pytest.mark.parametrize(
        ("model", "state", "why"),
        [
            (mlp(4, 8, 2), mlp(4, 16, 2).state_dict(), "pruning makes nothing wider"),
            (mlp(4, 8, 2), mlp(4, 8, 9).state_dict(), "pruning makes nothing wider"),
            (nn.Linear(4, 4), nn.Linear(6, 4).state_dict(), "pruning makes nothing wider"),
            (mlp(4, 8, 5), mlp(4, 8, 2).state_dict(), "no other layer is narrower"),
            (mlp(4, 8, 8, 2), {**mlp(4, 3, 3, 2).state_dict(), "4.weight": torch.zeros(2, 8)}, "4.weight .* 2.weight"),
            (mlp(4, 8, 8, 2), {**mlp(4, 3, 3, 2).state_dict(), "0.bias": torch.zeros(8)}, "0.bias .* 0.weight"),
            (
                nn.Sequential(nn.Conv2d(1, 8, 1), nn.Conv2d(8, 8, 1, groups=8)),
                nn.Sequential(nn.Conv2d(1, 3, 1), nn.Conv2d(3, 3, 1, groups=3)).state_dict(),
                "no shape tells other groups than its 8",
            ),
            (
                nn.Sequential(nn.Conv2d(1, 8, 1), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(32, 2)),
                nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(24, 2)).state_dict(),
                "3.weight .* while 0.weight",
            ),
        ],
    )
    def test_it_is_the_size_mismatch_that_it_is(self, model: nn.Module, state: Any, why: str) -> None:
        before = shapes_of(model)
        with adopting(), pytest.raises(CheckpointError, match=rf"(?s)size mismatch for .*{why}"):
            model.load_state_dict(state)
        assert shapes_of(model) == before

    @pytest.mark.parametrize("other", [Apart(4), Apart(outputs=1)], ids=["a pass that fails", "another output"])
    def test_the_example_is_run_where_no_container_tells(self, other: Apart) -> None:
        model = Apart()
        state = {**other.state_dict(), "second.weight": torch.zeros(4, 8), "second.bias": torch.zeros(4)}
        with adopting(), pytest.raises(CheckpointError, match=r"(?s)size mismatch for .*in the shape of the state"):
            model.load_state_dict(state)
        assert shapes_of(model) == shapes_of(Apart())

    def test_a_tensor_that_was_put_into_a_compact_state(self, saved: tuple[Path, Plain]) -> None:
        path, _ = saved
        loaded = Plain()
        with adopting():
            state = torch.load(path, weights_only=True)["state_dict"]
            narrow = state["net.0.weight"][1:]
            with pytest.raises(CheckpointError, match=r"net.0.weight (has|was built with) shape"):
                loaded.load_state_dict({**state, "net.0.weight": narrow})
            if len(narrow) < 7:
                with pytest.raises(CheckpointError, match=r"net.5.weight has shape .* it was put there afterwards"):
                    loaded.load_state_dict({**state, "net.5.weight": torch.zeros(2, 32)})
        assert shapes_of(loaded) == shapes_of(Plain())
        assert applied_plan(loaded) is None
        assert not masks.read(loaded)

    def test_a_load_that_raises_leaves_the_model(self, saved: tuple[Path, Plain]) -> None:
        path, _ = saved
        loaded, foreign = Plain(), mlp(4, 8, 2)
        with adopting():
            state = torch.load(path, weights_only=True)["state_dict"]
            last = state.pop("net.5.bias")
            for model in (loaded, foreign):
                with pytest.raises(RuntimeError, match="Missing key"):
                    model.load_state_dict(state)
        assert shapes_of(loaded) == shapes_of(Plain())
        for model in (loaded, foreign):
            assert applied_plan(model) is None
            assert not masks.read(model)
            assert not any(isinstance(key, str) and "mask" in key for key in model.state_dict())
        assert loaded(X).shape == (3, 2)
        assert len(last) == 2

    def test_earlier_masks_come_back(self) -> None:
        model = mlp(4, 8, 2)
        masks.attach(model, ["0.weight"], is_structured=True)
        mask = torch.arange(8)[:, None].expand(8, 4) < 5
        masks.put(model, {"0.weight": mask})
        state = mlp(4, 3, 2).state_dict()
        del state["2.bias"]
        with adopting(), pytest.raises(RuntimeError, match="Missing key"):
            model.load_state_dict(state)
        assert torch.equal(masks.ours(model)["0.weight"], mask)
        assert masks.structured_names(model) == ("0.weight",)
        assert model(torch.ones(1, 4)).shape == (1, 2)

    def test_a_file_without_an_entry_that_is_wider(self, tmp_path: Path) -> None:
        run = trainer(tmp_path)
        run.fit(Plain(), loader())
        run.save_checkpoint(tmp_path / "plain.ckpt")
        with pytest.raises(CheckpointError, match=r"(?s)size mismatch for .*pruning makes nothing wider"):
            load(Plain, tmp_path / "plain.ckpt", width=4, **SAFELY)


def convolutions(width: int, inner: int) -> nn.Sequential:
    flattened = (nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * inner, 3))
    return nn.Sequential(
        nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, inner, 3), *flattened
    )


def gated(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 2 * width), nn.GLU(), nn.Linear(width, 2))


def shuffled(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 4 * width, 1), nn.PixelShuffle(2), nn.Conv2d(width, 2, 1))


def in_groups(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 2 * width, 1, groups=2), nn.Conv2d(2 * width, 2, 1))


def upwards(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, width, 1), nn.ConvTranspose2d(width, width, 2), nn.Conv2d(width, 2, 1))


@pytest.mark.parametrize(
    ("model", "small", "x"),
    [
        (convolutions(8, 16), convolutions(5, 9), X),
        (gated(8), gated(5), torch.ones(1, 4)),
        (shuffled(4), shuffled(3), X),
        (in_groups(4), in_groups(3), X),
        (upwards(6), upwards(4), X),
    ],
    ids=["flattened", "gated", "shuffled", "in groups", "upwards"],
)
def test_shapes_that_pruning_explains_are_taken(model: nn.Module, small: nn.Module, x: Tensor) -> None:
    with adopting():
        model.load_state_dict({name: tensor.clone() for name, tensor in small.state_dict().items()})
    assert torch.equal(model.eval()(x), small.eval()(x))
