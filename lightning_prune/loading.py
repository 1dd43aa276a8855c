"""Before weights load: the model takes the shape and the masks of the state that comes."""

from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from lightning_prune import checkpoints
from lightning_prune.compaction import Compaction
from lightning_prune.run import PruningRun

RunFor = Callable[[Trainer, LightningModule, Mapping[str, Any]], PruningRun | None]
"""(trainer, model, what the checkpoint says of the run) -> the run for the model's present shape; None: no pruning."""


class Loading:
    """A load_state_dict pre-hook: lets the model take the shape and masks of the state that is about to load.

    A copy of the model, deep or pickled, gets one that knows no trainer.

    Args:
        trainer: whose checkpoint is being restored.
        run_for: sets up pruning where it goes on.
    """

    def __init__(self, trainer: Trainer | None = None, run_for: RunFor | None = None) -> None:
        self._trainer, self._run_for = trainer, run_for

    def __deepcopy__(self, memo: dict[int, Any]) -> "Loading":
        return Loading()

    def __reduce__(self) -> tuple[type["Loading"], tuple[()]]:
        return Loading, ()

    def __call__(self, model: LightningModule, state_dict: dict[str, Any], prefix: str, *_: object) -> None:
        """Adapt the model; give a state without masks those that the run wants."""
        if prefix:
            return
        if self._trainer is not None:
            # Lightning does so only after the weights have loaded, which rounds those of a 64-true run
            self._trainer.precision_plugin.convert_module(model)
        entry = restored(self._trainer).get(checkpoints.KEY, {})
        run = self._resumed(model, entry.get("run"))
        if not checkpoints.fits(model, state_dict):
            checkpoints.adapt(model, state_dict, entry)
        if run is None and self._trainer and self._run_for:
            run = self._run_for(self._trainer, model, entry.get("run", {}))
        if run is not None:
            run.attach(model)
            checkpoints.add_masks(model, state_dict)

    def _resumed(self, model: LightningModule, saved: Mapping[str, Any] | None) -> PruningRun | None:
        """Return the run that goes on, set up on the shape that the model had when it began; None for a new one."""
        is_fit = self._trainer is not None and self._trainer.state.fn == "fit"
        if not (is_fit and self._trainer and self._run_for and saved) or saved["is_done"]:
            return None
        checkpoints.take_base(model, None if saved["base"] is None else Compaction.from_json(saved["base"]))
        return self._run_for(self._trainer, model, saved)


def restored(trainer: Trainer | None) -> dict[str, Any]:
    """Return the checkpoint that is being restored, empty outside of that: Lightning hands it to no earlier hook."""
    return {} if trainer is None else trainer._checkpoint_connector._loaded_checkpoint
