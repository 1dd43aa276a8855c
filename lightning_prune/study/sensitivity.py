"""How much each layer or channel group stands: the metric with one after the other pruned, nothing trained."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from lightning_prune.criteria import Magnitude, Observations, ObservingCriterion, Scores, scorable
from lightning_prune.data.metrics import MetricLike, check_metric, evaluate, is_higher_better, named, spoken
from lightning_prune.data.passes import Passes, own_random_state
from lightning_prune.distributed import ranks
from lightning_prune.documents import text_of, typed, whole
from lightning_prune.errors import NonFiniteError
from lightning_prune.model import masks
from lightning_prune.model.example import Inputs
from lightning_prune.model.summary import as_evaluated
from lightning_prune.selection import Units
from lightning_prune.selection.granularity import Channel, Granularity
from lightning_prune.selection.targets import Targets
from lightning_prune.study._removal import held, live_masks, units_for
from lightning_prune.study.curve import FORM, Sensitivity
from lightning_prune.values import check_number


def sensitivity(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    metric: MetricLike,
    levels: Iterable[float] = (0.1, 0.3, 0.5, 0.7, 0.9),
    granularity: Granularity | Channel = Channel(),  # noqa: B008
    criterion: Callable[[str, Tensor], Tensor] = Magnitude(),  # noqa: B008
    targets: Targets = Targets(),  # noqa: B008
    layers: Sequence[str] | None = None,
    higher_is_better: bool | None = None,
    path: str | Path | None = None,
    example_inputs: Inputs | None = None,
    seed: int = 0,
) -> Sensitivity:
    """Measure a metric against the sparsity of each layer or channel group alone, by forward passes only.

    One pass over the loader with nothing pruned, and one for each layer and level; fewer where two levels remove the
    same units. Weights are zeroed in place and put back bit by bit, also after an error or an interrupt. Nothing is
    traced or copied for a point.

    Args:
        model: dense or masked, in any mode; run in eval mode.
        loader: gives batches, as many in each pass.
        metric: a torchmetrics metric, which gets ``model(inputs)`` and targets of batches (inputs, targets); or
            ``metric(model, batch) -> scalar``, of which the mean over all samples counts.
        levels: shares of its units that one layer or group loses, rising, in (0, 1).
        granularity: the units: channels, of which those of a channel group go together, or weights or blocks.
        criterion: which units go first: a function of name and weight, or what
            :func:`~lightning_prune.study.significance` returned.
        targets: what may be pruned; for Channel the layers whose output channels may go.
        layers: names of the targets or channel groups to measure; None: all.
        higher_is_better: of the metric; None: what a torchmetrics metric says, True for a function.
        path: of a JSON file that each point is added to; where it exists, its points are not measured again. It reads
            with :meth:`Sensitivity.from_json` at the end.
        example_inputs: of ``forward``, for Channel; None: the model's ``example_input_array``.
        seed: of the random state in which each pass starts.

    Returns:
        the curve, which ``FromSensitivity(curve, max_drop=…)`` takes as an allocation.

    Raises:
        ValueError: an argument out of its range, an unknown layer, an empty loader, a metric that gives no scalar, or
            a file at ``path`` that belongs to another measurement.
        TypeError: an argument of another type.
        PruningError: the loader ended early.
        NonFiniteError: the metric is NaN or infinite with nothing pruned.

    Source:
        Li et al. 2017, "Pruning Filters for Efficient ConvNets", figure 2b; Han et al. 2015.
    """
    chosen = _checked_levels(levels)
    check_metric(metric)
    if isinstance(criterion, ObservingCriterion):
        raise TypeError(
            f"{criterion} watches {criterion.watches}s, and this makes forward passes only: measure it first and pass"
            f" criterion=significance(model, loader, criteria={criterion})"
        )
    if isinstance(criterion, type) or not callable(criterion):
        raise TypeError(f"criterion must be a function or a value such as Magnitude(), got {criterion!r:.80}")
    value: object = criterion
    plain = type(value).__name__ if isinstance(value, Mapping) else str(value)  # a significance prints as its table
    units = units_for(model, granularity, targets, example_inputs)
    with _undisturbed(model):
        points = _Points(model, Passes(loader, model, seed), metric, units, criterion, chosen)
        about = Sensitivity(
            base=0.0, levels=chosen, metrics={}, sizes={name: units.sizes[name] for name in _named(units, layers)},
            higher_is_better=is_higher_better(metric, higher_is_better), granularity=str(granularity),
            criterion=getattr(value, "__qualname__", plain), metric=named(metric),
        )  # fmt: skip
        file = None if path is None else _File(Path(path), model, seed)
        known = None if file is None else file.load(about)
        base = points.base() if known is None else known[0]
        if not math.isfinite(base):
            raise NonFiniteError(
                f"{spoken(about.metric)} is {base} with nothing pruned; look at the weights and the data"
            )
        measured: dict[str, list[float]] = {} if known is None else {name: list(v) for name, v in known[1].items()}
        curve = replace(about, base=base)
        with tqdm(total=len(about.sizes) * len(chosen), desc="sensitivity", disable=None, leave=False) as bar:
            bar.update(sum(map(len, measured.values())))
            for name in about.sizes:
                for value in points.of(name, base, measured.setdefault(name, [])):
                    measured[name].append(value)
                    bar.update()
                    if file is not None:
                        file.save(curve, measured)
        return replace(curve, metrics={name: tuple(values) for name, values in measured.items()})


@dataclass
class _Points:
    """Measures the points of one layer or channel group after the other."""

    model: nn.Module
    passes: Passes
    metric: MetricLike
    units: Units
    criterion: Callable[[str, Tensor], Tensor]
    levels: tuple[float, ...]
    scores: Scores = field(init=False)

    def __post_init__(self) -> None:
        weights = scorable(self.model, self.units.shapes, self.criterion)
        self.scores = Scores(self.criterion, weights, Observations(), masks.read(self.model))
        self.scores.check()

    def base(self) -> float:
        return evaluate(self.model, self.passes, self.metric)

    def of(self, name: str, base: float, known: Sequence[float]) -> Iterator[float]:
        """Yield the metric at each level of one layer or group behind those known already."""
        units = self.units.only([name], masks.dense_parameters(self.model))
        live = live_masks(self.model, units)
        candidates = units.candidates(self.scores, live)
        removed = [units.removed({name: level}, candidates) for level in self.levels]
        measured = {candidates.removed[name]: base}
        measured |= {counts[name]: value for counts, value in zip(removed, known, strict=False)}
        with held(self.model, units.shapes) as zero:
            for counts in removed[len(known) :]:
                if counts[name] not in measured:
                    zero({n: ~mask.to(live[n].device) for n, mask in units.masks(candidates, counts, self.scores)})
                    measured[counts[name]] = evaluate(self.model, self.passes, self.metric)
                yield measured[counts[name]]


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Run a model in eval mode; modes, buffers and the random state are afterwards what they were."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with own_random_state(), as_evaluated(model), torch.no_grad():
        try:
            yield
        finally:
            for buffer, saved in buffers:
                buffer.data.copy_(saved)


@dataclass
class _File:
    """The points measured so far, as JSON, so that a stopped measurement goes on."""

    path: Path
    model: nn.Module
    seed: int
    weights: int = field(init=False)

    def __post_init__(self) -> None:
        if self.path.is_dir():
            raise ValueError(f"path: {self.path} is a folder; pass a file in it, such as {self.path / 'curve.json'}")
        if not self.path.parent.is_dir():
            raise ValueError(f"path: there is no folder {self.path.parent}; make it first")
        digests = {name: ranks.digest(tensor) for name, tensor in masks.dense_names(self.model).items()}
        digests |= {f"{name} (mask)": ranks.digest(mask) for name, mask in masks.read(self.model).items()}
        self.weights = ranks.digest(torch.tensor([digests[name] for name in sorted(digests)]))

    def load(self, about: Sensitivity) -> tuple[float, Mapping[str, Sequence[float]]] | None:
        """Return base and points of the file; None when there is none."""
        if not self.path.exists():
            return None
        try:
            document = FORM.read(text_of(self.path))
            with FORM.parsing():
                base = typed(float, document["base"])
                metrics = typed(Mapping[str, tuple[float, ...]], document["metrics"])
        except ValueError as error:
            raise ValueError(f"{self.path} cannot be gone on with: {error}; pass another path or delete it") from error
        expected = self._document(about, {})
        odd = [k for k in expected if k not in ("base", "metrics") and document.get(k) != expected[k]]
        if odd:
            raise ValueError(
                f"{self.path} holds another measurement: its {', '.join(odd)} differ"
                f" ({document.get(odd[0])!r:.60}, here {expected[odd[0]]!r:.60}); pass another path or delete the file"
            )
        return base, metrics

    def save(self, curve: Sensitivity, measured: Mapping[str, Sequence[float]]) -> None:
        """Replace the file by one with these points."""
        with whole(self.path) as written:
            written.write_text(FORM.write(self._document(curve, measured), indent=1), encoding="utf-8")

    def _document(self, curve: Sensitivity, measured: Mapping[str, Sequence[float]]) -> dict[str, Any]:
        metrics = {name: list(measured.get(name, ())) for name in curve.sizes}
        plain = FORM.read(replace(curve, metrics={}).to_json())
        return {"weights": self.weights, "seed": self.seed, **plain, "metrics": metrics}


def _checked_levels(levels: Iterable[float]) -> tuple[float, ...]:
    if not isinstance(levels, Iterable):
        raise TypeError(f"levels must be several shares such as (0.3, 0.5, 0.7), got {levels!r:.80}")
    chosen = tuple(levels)
    if not chosen:
        raise ValueError("levels is empty; pass at least one share such as 0.5")
    for level in chosen:
        check_number("levels", level, above=0, below=1, why=": they are shares of one layer's units")
    if list(chosen) != sorted(set(chosen)):
        raise ValueError(f"levels must rise and name each share once, got {chosen}")
    return tuple(map(float, chosen))


def _named(units: Units, layers: Sequence[str] | None) -> tuple[str, ...]:
    if layers is None:
        return tuple(units.sizes)
    if isinstance(layers, str):
        raise TypeError(f"layers must be several names, got {layers!r}; pass [{layers!r}]")
    unknown = [name for name in layers if name not in units.sizes]
    if unknown or not layers:
        raise ValueError(
            f"layers names {unknown[0]!r}, which cannot be pruned; there are {', '.join(units.sizes)}"
            if unknown
            else "layers is empty; leave it out to measure all"
        )
    return tuple(dict.fromkeys(layers))
