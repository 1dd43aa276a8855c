"""Where the runs of a comparison take place: one after the other here, in processes, or on a Ray cluster."""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from multiprocessing.queues import Queue
from typing import Any

import torch

from lightning_prune.study.training import Contest, Outcome, Training, run
from lightning_prune.values import check_whole

Runner = Callable[[Contest, Sequence[Training]], Iterator[Outcome]]
"""``runner(contest, trainings) -> outcomes``, in any order, each as soon as it is there."""


@dataclass(frozen=True)
class InTurn:
    """One run after the other in this process."""

    def __call__(self, contest: Contest, trainings: Sequence[Training]) -> Iterator[Outcome]:
        """Yield the outcomes in order."""
        return (run(contest, training) for training in trainings)


@dataclass(frozen=True)
class Processes:
    """Several runs side by side, each in a process of its own; on CUDA each process has one device.

    ``make_model``, data, recipes and metric travel to the processes: they must be importable there, so no lambdas and
    nothing defined in a notebook's cell; a script that calls this needs ``if __name__ == "__main__":``.

    Args:
        count: how many at once; None: one for each CUDA device, or two cores where there is none.
    """

    count: int | None = None

    def __post_init__(self) -> None:
        if self.count is not None:
            check_whole("Processes.count", self.count, 1)

    def __call__(self, contest: Contest, trainings: Sequence[Training]) -> Iterator[Outcome]:
        """Yield the outcomes as they come."""
        count = min(self.count or torch.cuda.device_count() or max(1, (os.cpu_count() or 1) // 2), len(trainings))
        context = multiprocessing.get_context("spawn")
        slots: Queue[Any] = context.Queue()
        for slot in range(count):
            slots.put((slot, count))
        with ProcessPoolExecutor(count, context, initializer=_take_slot, initargs=(slots,)) as pool:
            futures = [pool.submit(run, contest, training) for training in trainings]
            try:
                for future in as_completed(futures):
                    yield future.result()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)


def _take_slot(slots: "Queue[Any]") -> None:
    """Let this process have one CUDA device, or its share of the cores."""
    slot, count = slots.get()
    visible = [one for one in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if one]
    devices = visible or [str(index) for index in range(torch.cuda.device_count())]
    if devices:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[slot % len(devices)]
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // count))


@dataclass(frozen=True)
class RayTune:
    """The runs as trials of Ray Tune, on whatever cluster ``ray.init`` has found; the extra is ``[ray]``.

    Args:
        cpus: of each run.
        gpus: of each run; a fraction lets several share one.
        address: of the cluster; None: this machine, or the cluster that ``RAY_ADDRESS`` names.
    """

    cpus: float = 1
    gpus: float = 0
    address: str | None = None

    def __call__(self, contest: Contest, trainings: Sequence[Training]) -> Iterator[Outcome]:
        """Yield the outcomes when all are there.

        Raises:
            ImportError: Ray is not installed.
            RuntimeError: a run failed; with what it raised.
        """
        try:
            import ray  # pyright: ignore[reportMissingImports]
            from ray import tune  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ImportError("RayTune needs Ray: pip install 'lightning-prune[ray]'") from error
        if not ray.is_initialized():
            ray.init(address=self.address, log_to_driver=False)
        held = ray.put((contest, tuple(trainings)))
        trainable = tune.with_resources(partial(_run_on_ray, held), {"cpu": self.cpus, "gpu": self.gpus})
        space = {"index": tune.grid_search(list(range(len(trainings))))}
        quiet = tune.RunConfig(verbose=0)
        for result in tune.Tuner(trainable, param_space=space, run_config=quiet).fit():
            if result.error is not None or result.metrics is None:
                raise RuntimeError(f"a run on Ray failed: {result.error}") from result.error
            yield Outcome(**result.metrics["outcome"])


def _run_on_ray(held: Any, config: dict[str, Any]) -> dict[str, Any]:  # noqa: ANN401
    import ray  # pyright: ignore[reportMissingImports]

    contest, trainings = ray.get(held)
    return {"outcome": vars(run(contest, trainings[config["index"]]))}
