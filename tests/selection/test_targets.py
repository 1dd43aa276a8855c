"""Which parameters a pattern or a name chooses."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import weight_norm as older_weight_norm
from torch.nn.utils.parametrizations import weight_norm

from lightning_prune.model import masks
from lightning_prune.selection.targets import Target, Targets

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")


def bad(value: Any) -> Any:
    """A value of a wrong type, which a type checker would not let through."""
    return value


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.blocks = nn.ModuleList(nn.Conv1d(8, 8, 1) for _ in range(2))
        self.up = nn.ConvTranspose2d(8, 4, 2)
        self.words = nn.Embedding(10, 6)
        self.fc = nn.Linear(4, 6)
        self.head = nn.Linear(6, 10)
        self.scale = nn.Parameter(torch.ones(3, 3))


def names(model: nn.Module, *include: str, exclude: tuple[str, ...] = ()) -> list[str]:
    return [target.name for target in Targets(include=include or ("*",), exclude=exclude).resolve(model)]


LAYERS = ["stem.weight", "blocks.0.weight", "blocks.1.weight", "up.weight", "fc.weight", "head.weight"]


def test_the_weights_of_every_convolution_and_linear() -> None:
    assert names(Net()) == LAYERS


def test_a_target_says_where_its_inputs_are() -> None:
    found = {target.name: target for target in Targets().resolve(Net())}
    assert found["stem.weight"] == Target("stem.weight", (8, 3, 3, 3), input_axis=1)
    assert found["up.weight"] == Target("up.weight", (8, 4, 2, 2), input_axis=0)


def test_patterns_choose_by_parameter_or_module() -> None:
    model = Net()
    assert names(model, "blocks.*") == ["blocks.0.weight", "blocks.1.weight"]
    assert names(model, "blocks.?") == ["blocks.0.weight", "blocks.1.weight"]
    assert names(model, "[sf]*.weight") == ["stem.weight", "fc.weight"]
    assert names(model, "fc", "stem") == ["stem.weight", "fc.weight"]
    assert names(model, exclude=("stem", "blocks.*", "head.weight")) == ["up.weight", "fc.weight"]
    assert names(model, "head", "*.weight", exclude=("stem",)) == LAYERS[1:]


def test_a_name_means_any_parameter() -> None:
    assert names(Net(), "scale", "norm", "fc.bias") == ["scale", "norm.weight", "fc.bias"]


def test_a_masked_model_has_the_same_names() -> None:
    model = Net()
    masks.attach(model, ["stem.weight", "head.weight"])
    assert names(model) == LAYERS


def test_the_model_itself_may_be_the_layer() -> None:
    assert names(nn.Linear(3, 2)) == ["weight"]


def test_frozen_and_lazy_ones_are_left_out() -> None:
    model = Net()
    model.fc.weight.requires_grad_(False)
    model.head = nn.LazyLinear(3)
    assert names(model) == LAYERS[:4]


def test_a_tied_parameter_is_one_target_under_its_first_name() -> None:
    model = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4), "c": nn.Linear(4, 4)})
    model["b"].weight = model["a"].weight
    assert names(model) == ["a.weight", "c.weight"]
    assert names(model, "b") == names(model, "b*") == names(model, "a", "b*") == ["a.weight"]
    assert names(model, exclude=("b",)) == ["c.weight"]


def test_a_shared_module_is_one_target_under_its_first_name() -> None:
    shared = nn.Linear(4, 4)
    model = nn.ModuleDict({"a": shared, "b": shared})
    assert names(model) == names(model, "b.weight") == ["a.weight"]
    masks.attach(model, names(model, "b.weight"))
    assert list(masks.read(model)) == ["a.weight"]


def test_an_embedding_tied_to_a_linear_is_its_weight() -> None:
    model = Net()
    model.head.weight = model.words.weight
    assert names(model, "head") == ["words.weight"]
    assert names(model) == [*LAYERS[:4], "words.weight", "fc.weight"]


def freeze(model: Net) -> None:
    model.stem.weight.requires_grad_(False)


def lazy(model: Net) -> None:
    model.fc = nn.LazyLinear(3)


def tie(model: Net) -> None:
    model.head.weight = model.words.weight


@pytest.mark.parametrize(
    ("change", "targets", "text"),
    [
        (
            None,
            Targets(("encoder.*",)),
            r"pattern 'encoder.\*' matches no prunable parameter; there are stem.weight, b",
        ),
        (
            None,
            Targets(("norm*",)),
            r"'norm\*' matches no.*matches norm.weight, norm.bias, which is frozen, lazy or no",
        ),
        (
            freeze,
            Targets(("stem*",)),
            r"'stem\*' matches no prunable parameter; it matches stem.weight, stem.bias, whi",
        ),
        (None, Targets(exclude=("nothing",)), "target pattern 'nothing' matches no prunable parameter"),
        (None, Targets(("encoder",)), "target 'encoder' is no parameter of this model; it has scale, stem.weight"),
        (freeze, Targets(("stem",)), r"target stem.weight is frozen \(requires_grad=False\); unfreeze it or leave it"),
        (
            lazy,
            Targets(("fc",)),
            "target fc.weight is lazy: it has no shape yet; run one batch through the model first",
        ),
        (None, Targets(("fc", "fc.weight")), "fc.weight and fc.weight are the same parameter; name it once"),
        (tie, Targets(("words", "head")), "words.weight and head.weight are one shared parameter; name it once"),
        (None, Targets(("fc",), exclude=("fc",)), r"Targets\(include=\('fc',\).* chooses no parameter of Net; it has"),
    ],
)
def test_bad_targets(change: Callable[[Net], None] | None, targets: Targets, text: str) -> None:
    model = Net()
    if change:
        change(model)
    with pytest.raises(ValueError, match=text):
        targets.resolve(model)


@pytest.mark.parametrize(
    ("build", "error", "text"),
    [
        (
            lambda: Targets(bad("*")),
            TypeError,
            r"Targets.include takes a sequence of name patterns, got '\*'; write \(",
        ),
        (
            lambda: Targets(exclude=bad((3,))),
            TypeError,
            r"Targets.exclude takes a sequence of name patterns, got \(3,\)",
        ),
        (lambda: Targets(("a", "b", "a")), ValueError, "Targets.include gives 'a' twice; name each target once"),
        (lambda: Targets(()), ValueError, "Targets.include is empty, so nothing would be pruned"),
    ],
)
def test_bad_arguments(build: Callable[[], object], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        build()


def test_targets_are_values_and_take_lists() -> None:
    assert Targets(include=["a"], exclude=["b"]) == Targets(("a",), ("b",))
    assert len({Targets(include=["a"]), Targets(("a",))}) == 1


class Sequences(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.lstm, self.cell = nn.Embedding(9, 4), nn.LSTM(4, 5, proj_size=3), nn.GRUCell(5, 6)
        self.attention, self.pair = nn.MultiheadAttention(6, 2, add_bias_kv=True), nn.Bilinear(6, 6, 2)


def test_recurrent_layers_attention_and_bilinear_are_targets_and_embeddings_by_name() -> None:
    lstm = ["lstm.weight_ih_l0", "lstm.weight_hh_l0", "lstm.weight_hr_l0"]
    cell, attention = ["cell.weight_ih", "cell.weight_hh"], ["attention.in_proj_weight", "attention.out_proj.weight"]
    assert names(Sequences()) == [*lstm, *cell, *attention, "pair.weight"]
    assert names(Sequences(), "lstm") == names(Sequences(), "lstm.*") == lstm
    assert names(Sequences(), "cell", "words") == ["words.weight", *cell]
    assert names(Sequences(), exclude=("lstm", "attention*", "pair")) == cell
    assert names(Sequences(), "lstm.weight_hh_l0") == lstm[1:2]


def test_computed_weights_are_chosen_by_the_name_of_the_weight_where_that_is_asked() -> None:
    model = nn.Sequential(nn.Linear(3, 4), weight_norm(nn.Linear(4, 5)), older_weight_norm(nn.Linear(5, 6)))
    made_of = ["1.parametrizations.weight.original0", "1.parametrizations.weight.original1", "2.weight_g", "2.weight_v"]

    def computed(*include: str, exclude: tuple[str, ...] = ()) -> list[str]:
        targets = Targets(include=include or ("*",), exclude=exclude).resolve(model, with_computed=True)
        return sorted(target.name for target in targets)

    assert names(model) == ["0.weight"]
    assert computed() == ["0.weight", *made_of]
    assert computed("1") == computed("1.weight") == made_of[:2]
    assert computed("*.weight", exclude=("1", "0")) == made_of[2:]
    assert names(model, "2.weight_v") == ["2.weight_v"]
    with pytest.raises(ValueError, match=r"target 2\.weight is computed from 2\.weight_g, 2\.weight_v: name one of"):
        names(model, "2")
