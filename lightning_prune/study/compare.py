"""Several recipes under one budget, beside the small dense network that they have to beat."""

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn
from tqdm import tqdm

from lightning_prune.data.losses import check_loss
from lightning_prune.data.metrics import MetricLike, check_metric, is_higher_better, named
from lightning_prune.data.passes import own_random_state
from lightning_prune.model.example import example_of
from lightning_prune.model.plain_copy import plain_copy
from lightning_prune.recipe import Recipe
from lightning_prune.run.binding import bind
from lightning_prune.study.comparison import CLOSE, Comparison, Cost, by_side, levels, mean_cost, ranked
from lightning_prune.study.runners import InTurn, Runner
from lightning_prune.study.training import (
    Contest,
    Outcome,
    Recipes,
    Training,
    check_example,
    loaders_of,
    measured,
    steps_of,
)
from lightning_prune.trainer.packages import LightningModule, is_lightning_module
from lightning_prune.values import check_whole

DENSE = "dense"
_ANY = 1_000_000
"""Steps of a run whose number is not known yet, for schedules in shares of it; no message shows it."""


def compare(
    make_model: Callable[[], LightningModule],
    data: Any,  # noqa: ANN401
    recipes: Mapping[str, Recipe | Sequence[Recipe]],
    *,
    budget_epochs: int,
    seeds: int | Sequence[int] = 3,
    metric: MetricLike | None = None,
    higher_is_better: bool | None = None,
    equal: Cost = "macs",
    small_dense: bool = True,
    runner: Runner = InTurn(),  # noqa: B008
    trainer: Mapping[str, Any] | None = None,
) -> Comparison:
    """Train several recipes with the same seeds and epochs, and rank what comes out at equal cost.

    Beside the recipes runs the dense network; then, for each level of cost that the recipes came to, a *small dense*
    network of that cost, trained from scratch for as many epochs: the control without which a pruned network's quality
    says little. Sides whose costs differ by at most 5 % are ranked against each other.

    Args:
        make_model: returns a fresh, untrained LightningModule with an ``example_input_array``; called after the seed is
            set.
        data: (training loader, validation loader), a LightningDataModule, or a function that returns either.
        recipes: name -> recipe, or several with different targets. Shares in their schedules are shares of the budget.
        budget_epochs: of each run.
        seeds: how many, from 0 on, or which.
        metric: of the trained network on the validation data, as for :func:`~lightning_prune.study.sensitivity`; None:
            its own loss there, which is better when lower.
        higher_is_better: of the metric; None: what a torchmetrics metric says, True for a function.
        equal: what is made equal: "macs" that a network runs, "bytes" of its parameters and buffers, or
            "effective_macs", which leave zeros out: what a backend that skips them would run.
        small_dense: whether to train the control.
        runner: where the runs take place: ``InTurn()``, ``Processes()`` or ``RayTune()``.
        trainer: further arguments of each Trainer, such as ``{"accelerator": "cpu"}``.

    Returns:
        the sides by cost and rank, with mean and spread over the seeds.

    Raises:
        ValueError: no recipe, a name that is taken, a recipe that does not fit the model, a number out of its range, or
            a metric that gives no scalar.
        TypeError: an argument of another type.

    Source:
        Zhu & Gupta 2018, "To prune, or not to prune: exploring the efficacy of pruning for model compression";
        Blalock et al. 2020, "What is the State of Neural Network Pruning?", on equal budgets and spread.
    """
    which = _checked_seeds(seeds)
    _check(recipes, equal, make_model, runner, trainer)
    check_whole("budget_epochs", budget_epochs, 1)
    if metric is not None:
        check_metric(metric)
    contest = Contest(make_model, data, budget_epochs, metric, dict(trainer or {}))
    _check_models(contest, recipes)
    sides: dict[str, Recipes] = {DENSE: None, **recipes}
    trainings = [Training(name, seed, side) for seed in which for name, side in sides.items()]
    done = by_side(_run(runner, contest, trainings, "compare"))
    costs = {name: mean_cost(outcomes, equal) for name, outcomes in done.items()}
    same = levels({name: costs[name] for name in recipes})
    controls: Controls = {}
    for names in same if small_dense else ():
        share = statistics.fmean(costs[name] for name in names) / costs[DENSE]
        if share < 1 - CLOSE:
            controls[f"small dense {share:.2%}"] = ("params" if equal == "bytes" else "macs", 1 - share), names
    trainings = [Training(name, seed, shrunk=how) for seed in which for name, (how, _) in controls.items()]
    done |= by_side(_run(runner, contest, trainings, "small dense"))
    is_higher = is_higher_better(metric, higher_is_better) if metric is not None else False
    # each control stands beside its recipes, and the whole network beside those that cost the same
    beside = [[*names, *(name for name, (_, of) in controls.items() if of is names)] for names in same]
    if costs[same[-1][0]] >= costs[DENSE] * (1 - CLOSE):
        beside[-1].append(DENSE)
    else:
        beside.append([DENSE])
    rows = ranked(done, beside, {DENSE, *controls}, equal, is_higher)
    return Comparison(tuple(rows), equal, "loss" if metric is None else named(metric), is_higher, budget_epochs)


def _run(runner: Runner, contest: Contest, trainings: Sequence[Training], what: str) -> list[Outcome]:
    outcomes = runner(contest, trainings) if trainings else iter(())
    return list(tqdm(outcomes, total=len(trainings), desc=what, disable=None, leave=False))


Controls = dict[str, tuple[tuple[str, float], Sequence[str]]]
"""Name of a small dense network -> (what it counts, share that goes), and the recipes that it is compared with."""


def _checked_seeds(seeds: int | Sequence[int]) -> tuple[int, ...]:
    if isinstance(seeds, int) and not isinstance(seeds, bool):
        check_whole("seeds", seeds, 1)
        return tuple(range(seeds))
    if isinstance(seeds, bool) or not seeds or not all(isinstance(seed, int) for seed in seeds):
        raise TypeError(f"seeds must be a number of runs or a sequence of whole numbers, got {seeds!r}")
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds names one twice: {tuple(seeds)}")
    return tuple(seeds)


def _check(
    recipes: Mapping[str, Any], equal: str, make_model: object, runner: object, trainer: Mapping[str, Any] | None
) -> None:
    if not isinstance(recipes, Mapping) or not recipes:
        raise ValueError(f"recipes must map names to recipes, at least one; got {recipes!r:.80}")
    taken = [name for name in recipes if name == DENSE or name.startswith("small dense")]
    if taken:
        raise ValueError(f"recipes calls one {taken[0]!r}, which is the name of a control; choose another")
    if equal not in ("macs", "effective_macs", "bytes"):
        raise ValueError(f'equal must be "macs", "effective_macs" or "bytes", got {equal!r}')
    if isinstance(make_model, nn.Module) or not callable(make_model):
        raise TypeError(
            "make_model must be a function that returns a fresh LightningModule each time, got a value of"
            f" {type(make_model).__name__}; pass the class, or lambda: …"
        )
    if isinstance(runner, type) or not callable(runner):
        raise TypeError(f"runner must be a value such as InTurn() or Processes(2), or a function, got {runner!r:.80}")
    if not isinstance(trainer, Mapping | None):
        raise TypeError(f'trainer must map arguments of Trainer, such as {{"accelerator": "cpu"}}, got {trainer!r:.80}')
    if "max_epochs" in (trainer or {}):
        raise ValueError("trainer sets max_epochs; the epochs of every run are budget_epochs=…")


@own_random_state()
def _check_models(contest: Contest, recipes: Mapping[str, Any]) -> None:
    """Refuse before the first run what would end a later one."""
    train, val, _ = loaders_of(contest.data)
    model, other = contest.make_model(), contest.make_model()
    if isinstance(model, nn.Module) and isinstance(other, nn.Module):
        tensors = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
        if model is other or any(id(tensor) in tensors for tensor in (*other.parameters(), *other.buffers())):
            raise ValueError(
                f"make_model returned the same {type(model).__name__}, or its weights, twice: every run would go on"
                " where the last one ended. Build a new one at each call, as in make_model=Net or lambda: Net(width=16)"
            )
    if not is_lightning_module(model):
        raise TypeError(f"make_model must return a fresh LightningModule, got {type(model).__name__}")
    check_example(model)
    if contest.metric is None:
        check_loss(model, None)
    steps = steps_of(contest, train) if model.automatic_optimization else None
    for name, recipe in recipes.items():
        for one in recipe if isinstance(recipe, list | tuple) else (recipe,):
            if not isinstance(one, Recipe):
                raise TypeError(f"recipes[{name!r}] must be a Recipe or a list of them, got {one!r:.80}")
            try:
                last = bind(one, plain_copy(model), example_of(model), steps or _ANY).schedule.final_step
                if steps is not None and last is not None and last > steps:
                    raise ValueError(
                        f"{one.schedule} ends at step {last}, and each run has {steps}: let it end earlier, give shares"
                        " of the run, such as end_step=0.7, or raise budget_epochs"
                    )
            except ValueError as error:
                raise ValueError(f"recipe {name!r} does not fit {type(model).__name__}: {error}") from error
    if contest.metric is not None and val is not None:
        measured(model, list(itertools.islice(val, 1)), contest.metric)
