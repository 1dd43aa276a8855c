"""The LightningModule side: recipes from the module, shapes and masks before weights load, export."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_prune.checkpoints import state as checkpoints
from lightning_prune.errors import PruningError
from lightning_prune.recipe import Recipe
from lightning_prune.trainer.callback import PruningCallback, pruning_callback_of
from lightning_prune.trainer.internals import validation_batches
from lightning_prune.trainer.packages import Callback, LightningModule, kinds

_Callbacks = Sequence[Callback] | Callback

if TYPE_CHECKING:
    from lightning_prune.deploy import Artifact, Backend

    _Base = LightningModule
else:
    _Base = object


class PruningMixin(_Base):
    """Put it before LightningModule: ``class Net(PruningMixin, LightningModule)``.

    It lets ``load_from_checkpoint`` bring back dense, masked and compact models, exports with
    :meth:`to_executorch`, and lets the module bring its own recipe with :meth:`configure_pruning`.
    """

    _pruning_callback: PruningCallback | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        order = cls.__mro__
        if any(kind in order[: order.index(PruningMixin)] for kind in kinds("LightningModule")):
            raise TypeError(f"PruningMixin must stand first: class {cls.__name__}(PruningMixin, LightningModule)")
        if cls.configure_callbacks is not PruningMixin.configure_callbacks:
            cls.configure_callbacks = _checked(cls.configure_callbacks)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the pruning callback out of a copy, deep or pickled: it belongs to one model and its run."""
        return super().__getstate__() | {"_pruning_callback": None}

    def configure_pruning(self) -> Recipe | Sequence[Recipe] | PruningCallback | None:
        """Return the recipe of this module, as ``configure_optimizers`` returns its optimizers; None: no pruning."""
        return None

    def configure_callbacks(self) -> _Callbacks:
        """Return the callbacks of the base class and the pruning callback, the same one at each fit."""
        given = super().configure_callbacks()
        callbacks = list(given) if isinstance(given, Sequence) else [given]
        own = self._own_callback()
        if own is None:
            return callbacks
        if any(isinstance(c, PruningCallback) and not c.is_from_module for c in self.trainer.callbacks):  # type: ignore[attr-defined]
            raise PruningError(
                f"pruning is given twice: {type(self).__name__}.configure_pruning returns it and the Trainer has a"
                " PruningCallback; keep one of them"
            )
        return [*callbacks, own]

    def _own_callback(self) -> PruningCallback | None:
        if self._pruning_callback is None:
            given = self.configure_pruning()
            if given is None:
                return None
            self._pruning_callback = given if isinstance(given, PruningCallback) else PruningCallback(given)
            self._pruning_callback.is_from_module = True
        return self._pruning_callback

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write what loading needs to know of masks and removed channels; an override calls ``super()``."""
        super().on_save_checkpoint(checkpoint)
        checkpoint.setdefault(checkpoints.KEY, {}).update(checkpoints.describe(self))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the shape and masks of the checkpoint, before its weights load; an override calls ``super()``."""
        super().on_load_checkpoint(checkpoint)
        is_awaited = self._trainer is not None and pruning_callback_of(self._trainer) is not None  # it adapts the model
        if "state_dict" in checkpoint and not is_awaited:  # a strategy that shards has loaded it already
            entry = checkpoints.adapt(self, checkpoint["state_dict"], checkpoint.get(checkpoints.KEY))
            checkpoints.take_example(self, entry)
            if checkpoints.KEY in checkpoint:
                checkpoint[checkpoints.KEY] = entry

    def to_executorch(self, path: str | Path, backend: "Backend | None" = None, **options: Any) -> "Artifact":
        """Export to a verified ``.pte`` file with its manifest beside it.

        With a Trainer that validates, file and module are compared on up to eight samples of its validation loader,
        before random inputs, unless there is a ``verify_on``. A note says where these are not what ``forward`` takes.

        Args:
            path: of the file, ending in ``.pte``.
            backend: where it runs; None: XNNPACK.
            **options: of :func:`lightning_prune.deploy.export`: ``example_inputs`` (None: ``example_input_array``, or
                one sample of what a fit learnt), ``dynamic_shapes``, ``feeds``, ``methods``, ``generation``,
                ``preprocess``, ``picture``, ``constants``, ``external_weights``, ``verify_on``, ``metric``, ``labels``,
                ``tolerance``.
        """
        from lightning_prune.deploy import XNNPACK, export
        from lightning_prune.deploy.program.loaders import OwnData

        if self._trainer is not None and options.get("verify_on") is None and options.get("metric") is None:
            options["verify_on"] = OwnData(validation_batches(self), "the validation loader")
        return export(self, path, backend=XNNPACK() if backend is None else backend, **options)


def _checked(configure_callbacks: Callable[..., _Callbacks]) -> Callable[..., _Callbacks]:
    """Wrap a subclass's ``configure_callbacks`` so that it cannot lose the pruning callback silently."""

    @functools.wraps(configure_callbacks)
    def checked(self: PruningMixin) -> _Callbacks:
        returned = configure_callbacks(self)
        callbacks = returned if isinstance(returned, Sequence) else [returned]
        own = self._own_callback()
        if own is not None and not any(callback is own for callback in callbacks):
            raise PruningError(
                f"{type(self).__name__}.configure_callbacks leaves out what configure_pruning returns: return"
                " [*super().configure_callbacks(), …]"
            )
        return returned

    return checked
