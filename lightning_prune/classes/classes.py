"""A classifier of many classes cut to those that are needed: a smaller head, and scores of what serves it."""

import hashlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_prune.classes.head import Head, find_head
from lightning_prune.criteria import Taylor
from lightning_prune.model.masks import dense_parameters, device_of
from lightning_prune.model.recalibration import inputs_of
from lightning_prune.model.summary import as_evaluated
from lightning_prune.tables import aligned
from lightning_prune.values import Choice

_M = TypeVar("_M", bound=nn.Module)

IGNORED = -100
"""The target of what belongs to none of the kept classes; cross_entropy leaves it out."""


@dataclass(frozen=True, eq=False)
class ClassScores(Choice):
    """How much each weight matters to the kept classes: a criterion for a :class:`Recipe`, made by `keep_classes`.

    Args:
        labels: of these classes.
        values: dense name -> scores of the weight's shape: the mean over the batches of (g w)^2, with the gradient g of
            the cross-entropy over the kept classes.
    """

    labels: tuple[str, ...]
    values: Mapping[str, Tensor]

    def __call__(self, name: str, weight: Tensor) -> Tensor:
        """Return the scores, shape of ``weight``.

        Raises:
            ValueError: nothing was measured for a weight of this name and shape.
        """
        found = self.values.get(name)
        if found is None or found.shape != weight.shape:
            was = "not at all" if found is None else f"with shape {tuple(found.shape)}"
            raise ValueError(
                f"{name} of shape {tuple(weight.shape)} was scored {was} by keep_classes: use its model, and Taylor()"
                " as criterion where compact_every_event removes channels between events"
            )
        return found.to(weight.device)

    def __repr__(self) -> str:
        digest = hashlib.sha256()
        for name, scores in self.values.items():
            digest.update(name.encode() + scores.cpu().numpy().tobytes())
        return f"ClassScores({', '.join(self.labels)}; {digest.hexdigest()[:12]})"


@dataclass(frozen=True, eq=False)
class ClassSubset(Generic[_M]):
    """What :func:`keep_classes` returns; ``str()`` of it is a table of the accuracies.

    Args:
        model: a copy that gives logits of the kept classes alone, in the order of ``labels``.
        labels: of the kept classes, in the order in which the given model has them.
        indices: their numbers in the given model.
        scores: of the weights for these classes, a criterion.
        counts: label -> how many of the loader's targets are of this class.
        before: label -> share of them that the given model gets right, among all of its classes.
        after: label -> share that ``model`` gets right, among the kept ones.
        max_abs_error: largest difference of a kept logit between the two models on the loader.
    """

    model: _M
    labels: tuple[str, ...]
    indices: tuple[int, ...]
    scores: ClassScores
    counts: Mapping[str, int]
    before: Mapping[str, float]
    after: Mapping[str, float]
    max_abs_error: float

    @property
    def accuracy_before(self) -> float:
        """Share of the targets of kept classes that the given model gets right."""
        return self._mean(self.before)

    @property
    def accuracy_after(self) -> float:
        """The same of ``model``."""
        return self._mean(self.after)

    def _mean(self, shares: Mapping[str, float]) -> float:
        return sum(shares[label] * count for label, count in self.counts.items()) / sum(self.counts.values())

    def targets(self, targets: Tensor) -> Tensor:
        """Return targets of the given model as those of ``model``; -100 where they are of no kept class.

        Args:
            targets: whole numbers, any shape.
        """
        return _renumbered(targets, self.indices)

    def __str__(self) -> str:
        known = [(label, self.counts[label], self.before[label], self.after[label]) for label in self.labels]
        known.append(("in all", sum(self.counts.values()), self.accuracy_before, self.accuracy_after))
        rows = [(label, f"{count:,}", f"{old:.1%}", f"{new:.1%}") for label, count, old, new in known]
        return aligned([("class", "targets", "before", "after"), *rows], has_total=True)


def keep_classes(
    model: _M, *, classes: Sequence[str], labels: Sequence[str] | None = None, loader: Iterable[Any]
) -> ClassSubset[_M]:
    """Cut a classifier to the classes that are needed.

    The other logits leave the head, a Linear or a convolution, through the channel graph, and the logits that stay are
    proven to be what they were. One pass over the loader measures the accuracy on the kept classes before and after,
    and how much each weight matters to them: ``Recipe(criterion=subset.scores, …)`` then decides which channels go.

    Args:
        model: gives logits (batch, N) or (batch, N, height, width), or with the N classes along the last axis; any
            module, also a LightningModule. It stays as it is.
        classes: labels of the classes to keep, at least two and not all.
        labels: of all N classes, in the order of the logits; None: "0", "1", …
        loader: batches (inputs, targets) with targets in [0, N), or negative where there is none.

    Returns:
        The smaller model and what was measured.

    Raises:
        ValueError: an unknown class, one twice, all of them or fewer than two; labels of another number than the
            logits; no head can be cut; the loader has no target of one of the classes, targets of another shape, or
            inputs for which the logits are not finite.
        TypeError: an argument or a batch is of another type.

    Source:
        For the scores Molchanov et al. 2019, equation 8, with the loss of the kept classes; they are class-conditional
        in that no gradient of another class enters.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 5))
        >>> data = [(torch.randn(20, 4), torch.arange(20) % 5)]
        >>> subset = keep_classes(net, classes=["b", "d"], labels=list("abcde"), loader=data)
        >>> subset.model[2], subset.labels
        (Linear(in_features=8, out_features=2, bias=True), ('b', 'd'))
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a module, got {model!r:.80}")
    if not isinstance(loader, Iterable):
        kind = type(loader).__name__
        raise TypeError(f"loader must give batches (inputs, targets), got a {kind}: pass DataLoader(…, batch_size=64)")
    batches = iter(loader)
    first = next(batches, None)
    if first is None:
        raise ValueError("the loader is empty; give it labelled batches, some of each class to keep")
    _check_batch(first)
    device = device_of(model)
    modes = [module.training for module in model.modules()]
    with as_evaluated(model):
        some = tuple(v[:2] if isinstance(v, Tensor) and v.dim() else v for v in inputs_of(first, device))
        head = find_head(model, some, labels)
        kept = _indices(classes, head.labels)
        small = head.cut(model, kept)
        found = _Measured(model, small, head, kept)
        with as_evaluated(small):
            for batch in itertools.chain([first], batches):
                found.add(batch, device)
    for module, mode in zip(small.modules(), modes, strict=True):
        module.training = mode
    return found.result()


def _check_batch(batch: Any) -> None:  # noqa: ANN401
    """Raise TypeError for what is no pair of inputs and numbers of classes, such as a single sample of a data set."""
    targets = batch[1] if isinstance(batch, tuple | list) and len(batch) > 1 else None
    if isinstance(targets, int) or (isinstance(targets, Tensor) and targets.dim() == 0):
        raise TypeError("the loader gives single samples, not batches of them: pass DataLoader(…, batch_size=64)")
    if not isinstance(targets, Tensor):
        kind = type(batch).__name__
        raise TypeError(f"the loader must give (inputs, targets) with a tensor of targets, got {kind}")
    if targets.is_floating_point() or targets.dtype == torch.bool:
        raise TypeError(f"targets must be numbers of classes, whole ones, got a tensor of {targets.dtype}")


def _indices(classes: Sequence[str], labels: Sequence[str]) -> tuple[int, ...]:
    """Return the numbers of the classes to keep, ascending."""
    if isinstance(classes, str) or not isinstance(classes, Sequence):
        raise TypeError(f'classes must be a list of labels, such as ["0", "1"], got {classes!r}')
    unknown = [name for name in classes if name not in labels]
    if unknown:
        known = ", ".join(map(repr, labels[:12])) + (", …" if len(labels) > 12 else "")
        raise ValueError(f"there is no class {unknown[0]!r}; the labels are {known}")
    twice = [name for index, name in enumerate(classes) if name in classes[:index]]
    if twice:
        raise ValueError(f"class {twice[0]!r} stands twice among the classes to keep; name each once")
    if not 2 <= len(classes) < len(labels):
        raise ValueError(
            f"{len(classes)} of {len(labels)} classes are to be kept; name at least two, and leave one out at least"
        )
    return tuple(sorted(labels.index(name) for name in classes))


def _renumbered(targets: Tensor, kept: Sequence[int]) -> Tensor:
    size = max(int(targets.max()) if targets.numel() else 0, *kept) + 1
    table = torch.full((size,), IGNORED, dtype=torch.int64, device=targets.device)
    table[list(kept)] = torch.arange(len(kept), device=targets.device)
    return torch.where(targets < 0, IGNORED, table[targets.long().clamp_min(0)])


class _Measured:
    """Sums over the batches: targets and right answers of each kept class, and scores.

    Args:
        model: the given one, in eval mode.
        small: the copy with the smaller head, in eval mode.
        head: where the classes lie.
        kept: numbers of the kept classes.
    """

    def __init__(self, model: nn.Module, small: nn.Module, head: Head, kept: tuple[int, ...]) -> None:
        self._model, self._small, self._head, self._kept = model, small, head, kept
        trained = {name: p for name, p in dense_parameters(small).items() if p.requires_grad}
        self._names, self._weights = list(trained), list(trained.values())
        self._sums = [torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for p in self._weights]
        self._batches, self._error = 0, 0.0
        self._counts, self._before, self._after = (torch.zeros(len(kept), dtype=torch.int64) for _ in range(3))

    def add(self, batch: Any, device: torch.device) -> None:  # noqa: ANN401
        """Look at what belongs to the kept classes in one batch.

        Raises:
            TypeError: the batch is no pair of inputs and numbers of classes.
            ValueError: targets of another shape, or of classes that there are not; logits that are not finite.
        """
        _check_batch(batch)
        inputs, targets = inputs_of(batch, device), batch[1].to(device)
        number, given = len(self._head.labels), inputs[0].shape[:1]
        if targets.shape[:1] != given:
            raise ValueError(f"a batch has {given.numel()} inputs and targets of shape {tuple(targets.shape)}")
        if targets.numel() and int(targets.max()) >= number:
            raise ValueError(
                f"a target is {int(targets.max())}, and the model has classes in [0, {number}) only; mark what has no"
                f" class by a negative number, such as {IGNORED}"
            )
        new = _renumbered(targets, self._kept)
        chosen = (new != IGNORED).flatten(1).any(dim=1) if new.dim() > 1 else new != IGNORED
        if bool(chosen.any()):
            whole = len(targets)
            part = tuple(v[chosen] if isinstance(v, Tensor) and v.dim() and len(v) == whole else v for v in inputs)
            self._learn(part, targets[chosen], new[chosen])

    def _learn(self, inputs: tuple[Any, ...], targets: Tensor, new: Tensor) -> None:
        """Compare both models on samples of the kept classes, and score the weights by their loss."""
        with torch.no_grad():
            dense = self._model(*inputs).movedim(self._head.axis, 1)
        expected = (*dense.shape[:1], *dense.shape[2:])
        if targets.shape != expected:
            raise ValueError(
                f"targets of shape {tuple(targets.shape)} do not go with logits of {tuple(expected)} samples: give the"
                " number of a class for each, not one-hot rows, at the size of the logits"
            )
        if not bool(dense.isfinite().all()):
            raise ValueError(
                "the model returns logits that are not finite for samples of the kept classes: look for NaN or infinite"
                " values in the loader's inputs and in the weights"
            )
        with torch.enable_grad():
            logits = self._small(*inputs).movedim(self._head.axis, 1)
            loss = cross_entropy(logits, new, ignore_index=IGNORED)
            gradients = torch.autograd.grad(loss, self._weights, allow_unused=True) if self._weights else ()
        for total, weight, gradient in zip(self._sums, self._weights, gradients, strict=True):
            if gradient is not None:
                total += Taylor().observe(weight.detach().to(total.dtype), gradient.to(total.dtype))
        self._batches += 1
        logits, there = logits.detach(), new != IGNORED
        self._error = max(self._error, float((dense[:, list(self._kept)] - logits).abs().max()))
        for sums, right in (
            (self._counts, there),
            (self._before, there & (dense.argmax(1) == targets)),
            (self._after, there & (logits.argmax(1) == new)),
        ):
            sums += torch.bincount(new[right], minlength=len(self._kept)).cpu()

    def result(self) -> ClassSubset[Any]:
        """Return the means.

        Raises:
            ValueError: a class to keep has not come up.
        """
        labels = tuple(self._head.labels[index] for index in self._kept)
        counts = dict(zip(labels, self._counts.tolist(), strict=True))
        absent = [label for label, count in counts.items() if not count]
        if absent:
            raise ValueError(
                f"the loader has no target of class {', '.join(map(repr, absent))}, so nothing can be measured for it;"
                " give it batches with some of each class to keep"
            )
        before, after = (
            dict(zip(labels, (s / self._counts).tolist(), strict=True)) for s in (self._before, self._after)
        )
        values = {name: total / self._batches for name, total in zip(self._names, self._sums, strict=True)}
        scores = ClassScores(labels, values)
        return ClassSubset(self._small, labels, self._kept, scores, counts, before, after, self._error)
