"""Whether to prune at all: measured on programs of the backend, every line with its figure."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from lightning_prune.data.losses import loss_of, trainless_copy
from lightning_prune.data.metrics import MetricLike, check_metric
from lightning_prune.data.passes import own_random_state
from lightning_prune.errors import GraphError
from lightning_prune.model.example import Example, Inputs, example_of
from lightning_prune.model.summary import measure_macs, single
from lightning_prune.study._programs import Empty, ProgramCost, narrower, programs, sparser
from lightning_prune.study.comparison import Comparison
from lightning_prune.study.curve import Sensitivity
from lightning_prune.study.sensitivity import sensitivity
from lightning_prune.trainer.packages import is_lightning_module

if TYPE_CHECKING:
    from lightning_prune.deploy import Backend

WORTHWHILE = 0.1
"""A share of latency or size below which a gain is none."""


@dataclass(frozen=True)
class Finding:
    """One line of advice.

    Args:
        speaks_for: whether it speaks for pruning; None: neither way.
        text: what was found, with its figure.
    """

    speaks_for: bool | None
    text: str


@dataclass(frozen=True)
class Advice:
    """Whether to prune, why, and what to try first; ``str()`` of it says so in lines.

    Args:
        prune: yes or no.
        findings: the reasons.
        first: what to try first; empty where the answer is no.
        programs: what was measured: "whole", "empty" (a call that computes next to nothing), "half" (of the channels of
            each channel group gone), "least" (all gone that can go), "zeros" (90 % of the weights at zero).
    """

    prune: bool
    findings: tuple[Finding, ...]
    first: tuple[str, ...]
    programs: Mapping[str, ProgramCost]

    def __str__(self) -> str:
        signs = {True: "+", False: "-", None: " "}
        lines = [f"prune: {'yes' if self.prune else 'no'}"]
        lines += [f"  {signs[finding.speaks_for]} {finding.text}" for finding in self.findings]
        lines += (
            ["try first:", *(f"  {number}. {text}" for number, text in enumerate(self.first, 1))] if self.first else []
        )
        return "\n".join(lines)


def advise(
    model: nn.Module,
    loader: Iterable[Any],
    backend: "Backend",
    *,
    metric: MetricLike | None = None,
    comparison: Comparison | None = None,
    example_inputs: Inputs | None = None,
    rounds: int = 30,
) -> Advice:
    """Say whether pruning this model is worth it on a backend, from measurements; the model is not touched.

    Copies of the model are exported, run and timed in turns: the whole one, one with half of its channels, one with as
    few as can be, one with 90 % of its weights at zero, and a program that computes next to nothing. No is the answer
    where a call costs more than half of the latency, where half of the channels save less than such a call or less
    than 10 %, where operators that pruning does not touch hold more than 80 % of the latency, where nothing can go, and
    where a small dense network was as good in a comparison.

    Args:
        model: trained, dense or masked, in any mode.
        loader: validation data; tells which channel groups stand most, with the model's own loss or ``metric``.
        backend: where the model shall run, such as ``XNNPACK()``. One that does not run here is judged by size alone.
        metric: see :func:`~lightning_prune.study.sensitivity`; None: a LightningModule's own loss, and for any other
            module the layers are not ranked.
        comparison: of :func:`~lightning_prune.study.compare`, whose control has a say then.
        example_inputs: of ``forward``; None: the model's ``example_input_array``, or the first sample of the loader.
        rounds: of the latency measurement.

    Returns:
        yes or no, the findings behind it, and what to try first.

    Raises:
        ValueError: the loader is empty, the metric gives no scalar, or the model rejects the example input.
        TypeError: an argument of another type.
        ImportError: ExecuTorch is not installed.
        ExportError: the model cannot be exported.
    """
    if metric is not None:
        check_metric(metric)
    if not isinstance(comparison, Comparison | None):
        raise TypeError(f"comparison must be what compare(…) returned, or None, got {comparison!r:.80}")
    with own_random_state(), torch.inference_mode(False):
        inputs = sample(model, loader, example_inputs)
        macs = measure_macs(model, inputs).total
        models: dict[str, nn.Module] = {"whole": model, "empty": Empty(), "zeros": sparser(model, 0.9)}
        stuck = ""
        try:
            models |= {"half": narrower(model, 0.5, inputs), "least": narrower(model, None, inputs)}
        except (ValueError, GraphError) as error:
            stuck = str(error).partition("\n")[0]
        curve = None if stuck else _curve(model, loader, metric, inputs)
        found = programs(models, inputs, backend, rounds)
    prune, findings = judged(found, stuck, comparison)
    return Advice(prune, findings, tuple(_first(macs, curve)) if prune else (), found)


def judged(
    found: Mapping[str, ProgramCost], stuck: str, comparison: Comparison | None
) -> tuple[bool, tuple[Finding, ...]]:
    """Return yes or no and the findings: yes where something speaks for it and nothing against.

    Args:
        found: what was measured, see :class:`Advice`.
        stuck: why no channel can go; "" where some can.
        comparison: whose control has a say; None: there is none.
    """
    findings = (*_of_channels(found, stuck), *_of_zeros(found), *_of_control(comparison))
    return not any(one.speaks_for is False for one in findings) and any(one.speaks_for for one in findings), findings


def sample(model: nn.Module, loader: Iterable[Any], given: Inputs | None) -> tuple[Tensor, ...]:
    """Return positional arguments to run a model on: as given, its own example, or the loader's first sample.

    Raises:
        ValueError: the loader is empty or gives no tensor.
    """
    example = example_of(model) if given is None else Example.of(given)
    if example is not None:
        return single(model, example).positional(model)
    batch = next(iter(loader), None)
    if batch is None:
        raise ValueError("the loader is empty; pass one that gives at least one batch")
    first = next((leaf for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.dim()), None)
    if first is None:
        raise ValueError(f"the loader gives no tensor to run {type(model).__name__} on: pass example_inputs=…")
    return (first[:1],)


def _curve(
    model: nn.Module, loader: Iterable[Any], metric: MetricLike | None, inputs: tuple[Tensor, ...]
) -> Sensitivity | None:
    if metric is not None:
        return sensitivity(model, loader, metric=metric, levels=(0.5,), example_inputs=inputs)
    if not is_lightning_module(model) or not model.automatic_optimization:
        return None

    def loss(one: nn.Module, batch: Any) -> Tensor:  # noqa: ANN401
        return loss_of(one, batch, 0, None)

    copied = trainless_copy(model)
    return sensitivity(copied, loader, metric=loss, levels=(0.5,), higher_is_better=False, example_inputs=inputs)


def _of_channels(found: Mapping[str, ProgramCost], stuck: str) -> Iterator[Finding]:
    if stuck:
        yield Finding(False, f"no channel can be removed: {stuck}")
        return
    whole, half, least, empty = (found[name] for name in ("whole", "half", "least", "empty"))
    if whole.ms is None or half.ratio is None or least.ratio is None or empty.ms is None or empty.ratio is None:
        yield _of_size(whole, half, f"this backend does not run here, so by size alone: {whole.bytes:,} bytes")
        return
    yield Finding(
        False if empty.ratio > 0.5 else None,
        f"a call that computes next to nothing takes {empty.ms:.4f} ms of the {whole.ms:.4f} ms ({empty.ratio:.0%})"
        + (": the model is too small for its overhead" if empty.ratio > 0.5 else ""),
    )
    saved = 1 - half.ratio
    is_little = saved < max(WORTHWHILE, empty.ratio)
    yield Finding(
        not is_little,
        f"half of the channels gone saves {saved * whole.ms:.4f} ms ({half.ratio:.2f}×)"
        + (f", less than {'such a call' if saved < empty.ratio else f'{WORTHWHILE:.0%}'}" if is_little else ""),
    )
    yield Finding(
        False if least.ratio > 0.8 else None,
        f"with all channels gone that can go, {least.ratio:.0%} of the latency is left"
        + (": it is in operators that pruning does not touch" if least.ratio > 0.8 else ""),
    )
    yield Finding(None, _of_size(whole, half, f"the file has {whole.bytes:,} bytes").text)


def _of_size(whole: ProgramCost, half: ProgramCost, text: str) -> Finding:
    share = half.bytes / whole.bytes
    return Finding(share <= 1 - WORTHWHILE, f"{text}, {share:.2f}× with half of the channels gone")


def _of_zeros(found: Mapping[str, ProgramCost]) -> Iterator[Finding]:
    whole, zeros = found["whole"], found["zeros"]
    size, zipped = zeros.bytes / whole.bytes, zeros.zipped / whole.zipped
    ignores = size > 1 - WORTHWHILE and (zeros.ratio is None or zeros.ratio > 1 - WORTHWHILE)
    figures = "" if zeros.ratio is None else f"latency {zeros.ratio:.2f}×, "
    yield Finding(
        None,
        f"90 % of the weights at zero: {figures}file {size:.2f}×, zipped {zipped:.2f}×"
        + ("; the backend ignores zeros, so single weights are no reason to prune" if ignores else ""),
    )


def _of_control(comparison: Comparison | None) -> Iterator[Finding]:
    if comparison is None:
        return
    recipes = [row for row in comparison if not row.is_control]
    sign = 1 if comparison.higher_is_better else -1
    gains = []
    for row in recipes:
        control = next((o for o in comparison if o.level == row.level and o.is_control and o.name != "dense"), None)
        if control is not None:
            gains.append((sign * (row.mean - control.mean) - max(row.spread, control.spread), row, control))
    if gains:
        gain, row, control = max(gains, key=lambda one: one[0])
        text = f"{comparison.metric} {row.mean:.4f} ± {row.spread:.4f} of {row.name!r} against {control.mean:.4f} ±"
        text += f" {control.spread:.4f} of {control.name!r}, trained from scratch"
        yield Finding(gain > 0, text if gain > 0 else f"{text}: the small dense network is just as good")


def _first(macs: int, curve: Sensitivity | None) -> Iterator[str]:
    yield (
        'Recipe(granularity=Channel(), criterion=Taylor(), allocation=Global(cost="macs"), count="macs",'
        f" schedule=Polynomial(0.5, begin_step=0.1, end_step=0.6, frequency=10)): half of {macs:,} MACs"
    )
    if curve is not None:
        drops = {name: curve.drops(name)[0] for name in curve.metrics}
        mildest, worst = min(drops, key=lambda name: drops[name]), max(drops, key=lambda name: drops[name])
        yield (
            f"half of {mildest} alone moves the {curve.metric} from {curve.base:.4g} to"
            f" {curve.metrics[mildest][0]:.4g}, half of {worst} to {curve.metrics[worst][0]:.4g}: keep that wide, or"
            " allocation=FromSensitivity(curve)"
        )
    yield "compare(…) with a small dense network of the same MACs before you ship"
