"""Classes are cut from a classifier exactly, and what is measured on the way is what NumPy and autograd say."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from packages import SAFELY
from support import Net, trainer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from lightning_prune import Channel, OneShot, PruningCallback, PruningMixin, Recipe, finalize, keep_classes
from lightning_prune.classes.classes import ClassScores
from lightning_prune.compaction import applied_plan
from lightning_prune.model import masks
from lightning_prune.run.run import PruningRun

LABELS = ["a", "b", "c", "d"]
SAMPLES = TensorDataset(torch.randn(4, 1, 6, 6), torch.arange(4))


class Segmenter(nn.Module):
    """A 1x1 convolution as head, on the sum of two scales."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(1, 6, 3, stride=2, padding=1)
        self.head, self.side = nn.Conv2d(6, 4, 1), nn.Conv2d(6, 4, 1)

    def forward(self, images: Tensor) -> Tensor:
        coarse = self.side(torch.relu(self.coarse(images)))
        larger = nn.functional.interpolate(coarse, scale_factor=2.0)
        return self.head(torch.relu(self.fine(images))) + larger


class Tagger(nn.Module):
    """Classes along the last axis, from words."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(9, 6), nn.Linear(6, 4, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.words(tokens))


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Tensor], tuple[int, ...]]] = {
    "linear": (Net, lambda n: torch.randn(n, 1, 6, 6), ()),
    "segmentation": (Segmenter, lambda n: torch.randn(n, 1, 6, 6), (6, 6)),
    "tags": (Tagger, lambda n: torch.randint(9, (n, 5)), (5,)),
    "convolution": (
        lambda: nn.Sequential(nn.Conv2d(1, 4, 6), nn.Flatten()), lambda n: torch.randn(n, 1, 6, 6), ()
    ),
}  # fmt: skip


def data(inputs: Callable[[int], Tensor], shape: tuple[int, ...] = (), size: int = 24) -> list[list[Tensor]]:
    targets = torch.arange(size * max(1, int(torch.tensor(shape).prod()))).view(size, *shape) * 7 % 4
    images = inputs(size)
    return [[images[:10], targets[:10]], [images[10:], targets[10:]]]


@pytest.mark.parametrize("name", MODELS)
class TestExact:
    def test_kept_logits_are_what_they_were(self, name: str) -> None:
        make, inputs, shape = MODELS[name]
        model = make().double().eval()
        batches = [[x.double() if x.is_floating_point() else x, y] for x, y in data(inputs, shape)]
        subset = keep_classes(model, classes=["d", "b"], labels=LABELS, loader=batches)
        assert (subset.labels, subset.indices) == (("b", "d"), (1, 3))
        x = batches[0][0]
        axis = -1 if name == "tags" else 1
        with torch.no_grad():
            expected = model(x).index_select(axis, torch.tensor([1, 3]))
            assert torch.allclose(subset.model(x), expected, rtol=0, atol=1e-14)
        assert subset.max_abs_error < 1e-14
        whole = sum(p.numel() for p in model.parameters())
        assert sum(p.numel() for p in subset.model.parameters()) < whole

    def test_the_given_model_stays_as_it_is(self, name: str) -> None:
        make, inputs, shape = MODELS[name]
        model = make().train()
        before = {key: value.clone() for key, value in model.state_dict().items()}
        batches, state = data(inputs, shape), torch.get_rng_state()
        subset = keep_classes(model, classes=["a", "b"], labels=LABELS, loader=batches)
        assert torch.equal(torch.get_rng_state(), state)
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        assert all(module.training for module in (*model.modules(), *subset.model.modules()))
        assert all(p.grad is None for p in (*model.parameters(), *subset.model.parameters()))
        assert applied_plan(model) is None

    def test_accuracy_and_counts(self, name: str) -> None:
        make, inputs, shape = MODELS[name]
        model, batches = make().eval(), data(inputs, shape)
        subset = keep_classes(model, classes=["a", "c"], labels=LABELS, loader=batches)
        axis = -1 if name == "tags" else 1
        with torch.no_grad():
            logits = torch.cat([model(x) for x, _ in batches]).movedim(axis, 1)
        targets = torch.cat([y for _, y in batches])
        for label, index in (("a", 0), ("c", 2)):
            there = targets == index
            assert subset.counts[label] == int(there.sum())
            assert subset.before[label] == pytest.approx(float((logits.argmax(1) == index)[there].float().mean()))
            wins = logits[:, index] >= logits[:, [0, 2]].amax(1)
            assert subset.after[label] == pytest.approx(float(wins[there].float().mean()))
            assert subset.after[label] >= subset.before[label]
        right = sum(subset.after[label] * subset.counts[label] for label in subset.labels)
        assert subset.accuracy_after == pytest.approx(right / sum(subset.counts.values()))
        assert "in all" in str(subset)


class TestScores:
    def test_are_those_of_the_kept_classes_alone(self) -> None:
        """No gradient of another class enters, and the mean is over the batches."""
        model = Net().eval()
        batches = data(MODELS["linear"][1])
        subset = keep_classes(model, classes=["a", "c"], labels=LABELS, loader=batches)
        terms = []
        for images, targets in batches:
            kept = (targets == 0) | (targets == 2)
            small = subset.model.eval()
            small.zero_grad()
            cross_entropy(small(images[kept]), targets[kept] // 2).backward()
            terms.append({n: (p * p.grad).detach().square() for n, p in small.named_parameters() if p.grad is not None})
        for name, weight in subset.model.named_parameters():
            expected = (terms[0][name] + terms[1][name]) / 2
            assert torch.allclose(subset.scores(name, weight), expected, rtol=1e-4, atol=1e-12), name

    def test_decide_which_channels_go(self) -> None:
        """Channels that only other classes look at go first."""
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
        with torch.no_grad():
            model[4].weight.zero_()  # type: ignore[operator, union-attr]
            model[4].weight[:2, 1:3] = torch.tensor([[1e-3, -1e-3], [-1e-3, 1e-3]])  # type: ignore[index]
            model[4].weight[2:, [0, 3]] = 10.0  # type: ignore[index]
        batches = data(MODELS["linear"][1])
        subset = keep_classes(model, classes=["a", "b"], labels=LABELS, loader=batches)
        recipe = Recipe(schedule=OneShot(0.5), granularity=Channel(), criterion=subset.scores)
        run = PruningRun([recipe], subset.model, (batches[0][0],), None)
        run.start([torch.optim.SGD(subset.model.parameters(), lr=0.1)], [], subset.model)
        before = subset.model(batches[0][0])
        run.prune_if_due(subset.model)
        small = finalize(subset.model, batches[0][0])
        assert small.get_submodule("0").weight.shape[0] == 2  # type: ignore[union-attr]
        assert torch.allclose(small(batches[0][0]), before, atol=1e-6)

    def test_are_told_by_their_values(self) -> None:
        model, batches = Net(), data(MODELS["linear"][1])
        texts = [
            repr(keep_classes(model, classes=kept, labels=LABELS, loader=batches).scores)
            for kept in (["a", "b"], ["b", "a"], ["a", "c"])
        ]
        assert texts[0] == texts[1]
        assert texts[0].startswith("ClassScores(a, b; ")
        assert texts[2][-13:] != texts[0][-13:]

    def test_of_another_weight_are_refused(self) -> None:
        scores = ClassScores(("a", "b"), {"head.weight": torch.ones(2, 3)})
        with pytest.raises(ValueError, match=r"head.weight of shape \(2, 2\) was scored with shape \(2, 3\)"):
            scores("head.weight", torch.ones(2, 2))
        with pytest.raises(ValueError, match=r"conv.weight .* not at all"):
            scores("conv.weight", torch.ones(2, 2))


class TestAfterwards:
    def test_targets_are_renumbered(self) -> None:
        subset = keep_classes(Net(), classes=["b", "d"], labels=LABELS, loader=data(MODELS["linear"][1]))
        assert subset.targets(torch.tensor([[3, 0, 1], [2, -1, 3]])).tolist() == [[1, -100, 0], [-100, -100, 1]]

    def test_trains_prunes_and_loads(self, tmp_path: Any) -> None:
        class Mixed(PruningMixin, Net):
            pass

        batches = data(MODELS["linear"][1])
        subset = keep_classes(Mixed(), classes=["b", "d"], labels=LABELS, loader=batches)
        subset.model.attn_mask = torch.ones(2)
        x, y = (torch.cat(column) for column in zip(*batches, strict=True))
        new = subset.targets(y)
        loader = DataLoader(TensorDataset(x[new >= 0], new[new >= 0]), 4)
        recipe = Recipe(schedule=OneShot(0.5, 2), granularity=Channel(), criterion=subset.scores)
        fit = trainer(tmp_path, PruningCallback(recipe))
        fit.fit(subset.model, loader)
        fit.save_checkpoint(tmp_path / "small.ckpt")
        again = Mixed.load_from_checkpoint(tmp_path / "small.ckpt", **SAFELY)
        assert again.head.out_features == 2
        with torch.no_grad():
            assert torch.equal(again.eval()(x), subset.model.eval()(x))

    def test_of_a_subset_is_a_smaller_subset(self) -> None:
        batches = data(MODELS["linear"][1])
        model = Net().double().eval()
        batches = [[x.double(), y] for x, y in batches]
        first = keep_classes(model, classes=["a", "b", "d"], labels=LABELS, loader=batches)
        renumbered = [[x, first.targets(y)] for x, y in batches]
        second = keep_classes(first.model, classes=["a", "d"], labels=first.labels, loader=renumbered)
        with torch.no_grad():
            x = batches[0][0]
            assert torch.allclose(second.model(x), model(x)[:, [0, 3]], atol=1e-14)

    def test_of_a_masked_model_keeps_its_masks(self) -> None:
        model, batches = Net(), data(MODELS["linear"][1])
        run = PruningRun([Recipe(schedule=OneShot(0.5))], model, (batches[0][0],), None)
        run.start([torch.optim.SGD(model.parameters(), lr=0.1)], [], model)
        run.prune_if_due(model)
        subset = keep_classes(model, classes=["a", "b"], labels=LABELS, loader=batches)
        assert masks.mask_of(subset.model.head, "weight").shape == (2, 8)  # type: ignore[union-attr]
        assert subset.max_abs_error < 1e-5


class Twisted(nn.Module):
    """Turns its logits into probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(36, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(images.flatten(1)).softmax(1)


class TestBadInput:
    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"classes": ["a", "e"]}, ValueError, "there is no class 'e'; the labels are 'a', 'b', 'c', 'd'"),
            ({"classes": LABELS}, ValueError, "4 of 4 classes are to be kept"),
            ({"classes": ["a"]}, ValueError, "1 of 4 classes are to be kept; name at least two"),
            ({"classes": []}, ValueError, "0 of 4 classes"),
            ({"classes": ["a", "b", "a"]}, ValueError, "class 'a' stands twice"),
            ({"classes": "ab"}, TypeError, "classes must be a list of labels"),
            ({"labels": list("abc")}, ValueError, r"labels has 3 names, and Net returns shape \(2, 4\)"),
            ({"labels": ["a", "a", "b", "c"]}, ValueError, "label 'a' stands twice"),
            ({"labels": [0, 1, 2, 3]}, TypeError, "labels must be text, got 0"),
            ({"loader": []}, ValueError, "the loader is empty"),
            ({"loader": [torch.randn(3, 1, 6, 6)]}, TypeError, r"must give \(inputs, targets\)"),
            ({"loader": [[torch.randn(3, 1, 6, 6), torch.randn(3, 4)]]}, TypeError, "numbers of classes"),
            ({"loader": SAMPLES}, TypeError, r"got a TensorDataset: pass DataLoader\(…, batch_size=64\)"),
            ({"loader": [SAMPLES[0]]}, TypeError, r"single samples, not batches of them: pass DataLoader\(…"),
            ({"loader": [(torch.randn(1, 6, 6), 1)]}, TypeError, "single samples, not batches of them"),
            (
                {"loader": [[torch.randn(3, 1, 6, 6), torch.tensor([0, 2, 2])]]},
                ValueError,
                "no target of class 'b'",
            ),
            (
                {"loader": [[torch.randn(3, 1, 6, 6), torch.tensor([0, 1, 4])]]},
                ValueError,
                "a target is 4, .* mark what has no class by a negative number, such as -100",
            ),
            ({"loader": [[torch.randn(3, 1, 6, 6), torch.tensor([True, False, True])]]}, TypeError, "torch.bool"),
            (
                {"loader": [[torch.randn(3, 1, 6, 6), torch.eye(4).long()[:3]]]},
                ValueError,
                r"targets of shape \(3, 4\) do not go with logits of \(3,\) samples: give the number of a class",
            ),
            (
                {"loader": [[torch.randn(3, 1, 6, 6), torch.tensor([0, 1])]]},
                ValueError,
                r"3 inputs and targets of shape \(2,\)",
            ),
            (
                {"loader": [[torch.full((3, 1, 6, 6), torch.nan), torch.tensor([0, 1, 1])]]},
                ValueError,
                "logits that are not finite for samples of the kept classes",
            ),
            ({"model": "net"}, TypeError, "model must be a module, got 'net'"),
            ({"model": Twisted()}, ValueError, "no head found: the classes of Twisted cannot be removed"),
            ({"model": nn.Flatten(0)}, ValueError, r"no head found: Flatten must return logits"),
            (
                {"model": nn.Flatten(), "labels": [str(i) for i in range(36)], "classes": ["0", "1"]},
                ValueError,
                "no head",
            ),
        ],
    )
    def test_is_refused(self, options: dict[str, Any], error: type[Exception], message: str) -> None:
        model = options.pop("model", None) or Net()
        state = model.state_dict() if isinstance(model, nn.Module) else {}
        before = {key: value.clone() for key, value in state.items()}
        given: dict[str, Any] = {
            "classes": ["a", "b"], "labels": LABELS, "loader": data(MODELS["linear"][1]), **options
        }  # fmt: skip
        with pytest.raises(error, match=message):
            keep_classes(model, **given)
        assert all(torch.equal(value, before[key]) for key, value in state.items())

    def test_a_loader_that_breaks_off(self) -> None:
        def breaking() -> Iterator[list[Tensor]]:
            yield data(MODELS["linear"][1])[0]
            raise OSError("the disk is gone")

        model = Net().train()
        with pytest.raises(OSError, match="the disk is gone"):
            keep_classes(model, classes=["a", "b"], labels=LABELS, loader=breaking())
        assert all(module.training for module in model.modules())
        assert not any(module._forward_hooks for module in model.modules())


class TestHeads:
    """Where the head stands, and what stands behind it."""

    class Tied(nn.Module):
        """One weight for two heads whose logits are added."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(36, 4), nn.Linear(36, 4)
            self.second.weight = self.first.weight

        def forward(self, images: Tensor) -> Tensor:
            return self.first(images.flatten(1)) + self.second(images.flip(3).flatten(1))

    @pytest.mark.parametrize(
        "make",
        [
            lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 4), nn.BatchNorm1d(4)),
            lambda: nn.Sequential(nn.Flatten(), nn.Sequential(nn.Dropout(), nn.Sequential(nn.Linear(36, 4)))),
            lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 4), nn.PReLU(4)),
            Tied,
        ],
        ids=["batch norm behind it", "in sequentials", "scales behind it", "tied"],
    )
    def test_is_cut_exactly(self, make: Callable[[], nn.Module]) -> None:
        model = make().double()
        batches = [[x.double(), y] for x, y in data(MODELS["linear"][1])]
        for x, _ in batches:
            model(x)  # batch norm has seen something
        subset = keep_classes(model, classes=["b", "d"], labels=LABELS, loader=batches)
        x = batches[0][0]
        with torch.no_grad():
            assert torch.allclose(subset.model.eval()(x), model.eval()(x)[:, [1, 3]], rtol=0, atol=1e-14)
        assert subset.max_abs_error < 1e-14

    @pytest.mark.parametrize("labels", [LABELS, None])
    def test_as_many_words_as_classes(self, labels: list[str] | None) -> None:
        """Axis 1 has as many entries as there are classes, and is not theirs."""
        tokens, targets = torch.randint(9, (12, 4)), torch.arange(48).view(12, 4) % 4
        kept = ["b", "d"] if labels else ["1", "3"]
        subset = keep_classes(Tagger(), classes=kept, labels=labels, loader=[[tokens, targets]])
        assert subset.model(tokens).shape == (12, 4, 2)

    def test_rows_of_an_embedding_stay(self) -> None:
        class Words(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.words, self.head = nn.Embedding(4, 6), nn.Linear(6, 4, bias=False)
                self.head.weight = self.words.weight

            def forward(self, tokens: Tensor) -> Tensor:
                return self.head(self.words(tokens).mean(1))

        batches = data(lambda n: torch.randint(4, (n, 3)))
        with pytest.raises(ValueError, match=r"embedding at inner\.words looks its rows up by index"):
            keep_classes(Words(), classes=["a", "b"], labels=LABELS, loader=batches)

    def test_of_a_frozen_model(self) -> None:
        model, batches = Net().requires_grad_(False), data(MODELS["linear"][1])
        subset = keep_classes(model, classes=["a", "b"], labels=LABELS, loader=batches)
        assert subset.model.head.out_features == 2
        with pytest.raises(ValueError, match="not at all"):
            subset.scores("head.weight", subset.model.head.weight)
