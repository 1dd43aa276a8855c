"""What cannot work is refused by name, and nothing has changed then."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pruner_cases import X, bytes_of, network, ready
from torch import Tensor, nn

from lightning_prune.criteria import Taylor
from lightning_prune.errors import GraphError, NonFiniteError, PruningError
from lightning_prune.model import masks
from lightning_prune.recipe import Recipe
from lightning_prune.run.binding import bind
from lightning_prune.run.pruner import prune_step
from lightning_prune.schedules import Linear, OneShot
from lightning_prune.selection.granularity import Block, Channel, Element, NOfM
from lightning_prune.selection.targets import Targets


@pytest.mark.parametrize(
    ("recipe", "text"),
    [
        (
            Recipe(schedule=OneShot(0.97), granularity=Channel()),
            r"asks for sparsity 0.97 of channels, but the chosen targets can give 0.9423 at most; lower final_sparsity",
        ),
        (
            Recipe(schedule=OneShot(0.5), granularity=Channel(min_channels=10)),
            "asks for sparsity 0.5 of channels, but the chosen targets can give 0.4231 at most; .*min_channels",
        ),
        (
            Recipe(schedule=OneShot(0.5), granularity=Channel(min_share=0.75), count="macs"),
            "asks for sparsity 0.5 of macs, but the chosen targets can give 0.3.* at most; .*min_share",
        ),
        (
            Recipe(schedule=OneShot(0.5), granularity=Channel(), count="macs", targets=Targets(("fc",))),
            r"asks for sparsity 0.5 of macs, but the chosen targets can give 0.0111 at most",
        ),
        (
            Recipe(schedule=OneShot(0.9), targets=Targets(("fc",)), count="params"),
            "asks for sparsity 0.9 of params, but the chosen targets can give 0.3.* at most; .*widen the targets",
        ),
        (
            Recipe(schedule=OneShot(0.6), granularity=NOfM(2, 4), count="params"),
            "asks for sparsity 0.6 of params, but the chosen targets can give 0.3851 at most",
        ),
    ],
)
def test_what_cannot_be_reached_is_refused_at_once(recipe: Recipe, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        bind(recipe, network(), X)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("granularity", [Element(), NOfM(2, 4), Channel()], ids=str)
def test_a_broken_weight_is_named_and_nothing_changes(granularity: Any, value: float) -> None:
    model = network()
    pruner = ready(Recipe(schedule=OneShot(0.5), granularity=granularity), model)
    prune_step(pruner, model, 0.3)
    with torch.no_grad():
        masks.dense_parameters(model)["fc.weight"][3, 3] = value
    before = bytes_of(model)
    carried: list[object] = []
    with pytest.raises(NonFiniteError, match=r"fc.weight has 1 weights that are NaN or infinite; nothing was pruned"):
        prune_step(pruner, model, 0.5, carried.append)
    assert bytes_of(model) == before
    assert pruner.asked == 0.3
    assert carried == []


def test_a_broken_score_is_named_and_nothing_changes() -> None:
    model = network()
    recipe = Recipe(schedule=OneShot(0.5), criterion=lambda name, w: w / (0.0 if name == "head.weight" else 1.0))
    pruner = ready(recipe, model)
    before = bytes_of(model)
    with pytest.raises(NonFiniteError, match=r"head.weight has 120 scores that are NaN or infinite"):
        prune_step(pruner, model, 0.5)
    assert bytes_of(model) == before


@pytest.mark.parametrize("replacement", [nn.Linear(64, 12), nn.Linear(64, 8)], ids=["same shape", "smaller"])
def test_a_module_replaced_after_setup_is_named(replacement: nn.Linear) -> None:
    model = network()
    pruner = ready(Recipe(schedule=OneShot(0.5)), model)
    model.fc = copy.deepcopy(replacement)
    before = bytes_of(model)
    with pytest.raises(
        PruningError, match=r"fc.weight had a mask of shape \(12, 64\) when .* and now has none: its module was repl"
    ):
        prune_step(pruner, model, 0.5)
    assert bytes_of(model) == before
    masks.attach(model, ["fc.weight"])
    if replacement.weight.shape != (12, 64):
        with pytest.raises(
            PruningError, match=r"fc.weight had a mask of shape \(12, 64\) .* now has one of shape \(8, 64\)"
        ):
            prune_step(pruner, model, 0.5)
    del model.fc
    with pytest.raises(PruningError, match=r"fc.weight had a mask .* and now has none"):
        prune_step(pruner, model, 0.5)


def test_taylor_without_a_gradient_says_so() -> None:
    model = network()
    pruner = ready(Recipe(schedule=OneShot(0.5, begin_step=3), criterion=Taylor()), model)
    before = bytes_of(model)
    with pytest.raises(PruningError, match=r"stem.weight has had no gradient yet"):
        prune_step(pruner, model, 0.5)
    assert bytes_of(model) == before


class Opaque(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


@pytest.mark.parametrize(
    ("build", "error", "text"),
    [
        (
            lambda: bind(Recipe(schedule=OneShot(0.5), granularity=Channel()), network(), None),
            ValueError,
            r"Channel\(.* needs an example input of Net: set Net.example_input_array = torch.zeros\(1, …\)",
        ),
        (
            lambda: bind(Recipe(schedule=OneShot(0.5), count="macs"), network(), None),
            ValueError,
            "count='macs' needs an example input of Net",
        ),
        (
            lambda: bind(Recipe(schedule=OneShot(0.5), granularity=Channel()), network(), (torch.zeros(1, 3, 8, 8),)),
            (ValueError, GraphError),
            r"1, 3, 8, 8",
        ),
        (
            lambda: bind(Recipe(schedule=OneShot(0.5), count="macs"), network(), (torch.zeros(1, 3, 8, 8),)),
            ValueError,
            r"Net rejects the example input \(1, 3, 8, 8\)",
        ),
        (
            lambda: bind(Recipe(schedule=OneShot(0.5), granularity=Channel()), Opaque(), (torch.zeros(1, 4),)),
            ValueError,
            "no channel of the chosen targets can be removed; the channel groups are\n(.|\n)*model output",
        ),
        (
            lambda: bind(Recipe(schedule=OneShot(0.5), granularity=Block((5, 1))), network(), X),
            ValueError,
            r"Block\(\(5, 1\)\) does not divide stem.weight of shape \(16, 1, 3, 3\)",
        ),
        (
            lambda: bind(
                Recipe(schedule=OneShot(0.5), granularity=NOfM(2, 4), targets=Targets(("stem", "deep"))), network(), X
            ),
            ValueError,
            r"NOfM\(n=2, m=4\) has no full unit in stem.weight of shape \(16, 1, 3, 3\), deep.weight",
        ),
        (
            lambda: bind(Recipe(schedule=Linear(0.5), criterion=Taylor()), network(), X),
            ValueError,
            "Linear.end_step is a share of the run, but the number of optimizer steps is unknown",
        ),
        (
            lambda: bind(Recipe(schedule=OneShot(0.5), criterion=Taylor()), network(), X),
            ValueError,
            r"Taylor\(\) watches the gradients of the steps before an event.*let begin_step be at least 1",
        ),
        (
            lambda: bind(Recipe(schedule=OneShot(0.5, begin_step=0.001), criterion=Taylor()), network(), X, 100),
            ValueError,
            r"Taylor\(\) watches the gradients",
        ),
        (
            lambda: bind(Recipe(schedule=OneShot(0.5), targets=Targets(("encoder*",))), network(), X),
            ValueError,
            r"target pattern 'encoder\*' matches no prunable parameter",
        ),
    ],
)
def test_what_cannot_work_is_refused_at_once(build: Callable[[], object], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        build()


def test_a_criterion_of_gradients_may_begin_at_the_first_step() -> None:
    bind(Recipe(schedule=OneShot(0.5, begin_step=1), criterion=Taylor()), network(), X)
    bind(Recipe(schedule=Linear(0.5, begin_step=0, end_step=9), criterion=Taylor()), network(), X)


def test_more_than_a_granularity_can_give() -> None:
    model = network()
    pruner = ready(Recipe(schedule=OneShot(0.5), granularity=NOfM(2, 4)), model)
    with pytest.raises(PruningError, match=r"NOfM\(n=2, m=4\) cannot reach sparsity 0.6; it ends at 0.5"):
        prune_step(pruner, model, 0.6)
