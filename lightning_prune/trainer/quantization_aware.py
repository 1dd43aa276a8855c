"""Quantization-aware training in the last epochs of a Lightning run."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_prune.errors import CheckpointError
from lightning_prune.trainer.fake_quantization import FakeQuantization, quantizable, update_ranges
from lightning_prune.trainer.packages import AnyCallback, Callback, LightningModule, Trainer
from lightning_prune.values import check_whole

_WIDE = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""What a range is of: that of the weights."""


class QuantizationAware(AnyCallback):
    """Trains the last epochs with weights and inputs rounded to 8 bits, so that the int8 export loses less.

    From ``begin_epoch`` on, every Linear and convolution computes, in training and validation, with its weight rounded
    as :class:`lightning_prune.deploy.Int8` rounds it (symmetric, one scale per output channel) and its input rounded
    to 256 steps of a range that follows the batches. Gradients pass as if nothing was rounded, so parameters,
    optimizer and checkpoints stay what they are, in float; masks stay, and masked weights stay exactly zero. When the
    fit ends the model computes in float again: export it with ``XNNPACK(quantization=Int8(calibration=loader))``.

    Args:
        begin_epoch: first epoch with rounding, counted from 0; below 0 from the end: −2 is the last two epochs.
        skip: name patterns (fnmatch) of module paths that stay in float, as in ``Int8(skip=)``.

    Source: Jacob et al. 2018, "Quantization and training of neural networks for efficient integer-arithmetic-only
        inference", section 3; ranges of inputs as there, by a moving average with a rate of 0.01.

    Example:
        >>> QuantizationAware(begin_epoch=-2).begin_epoch
        -2
    """

    def __init__(self, begin_epoch: int = -1, skip: Sequence[str] = ()) -> None:
        check_whole("QuantizationAware.begin_epoch", begin_epoch)
        if isinstance(skip, str) or not all(isinstance(pattern, str) for pattern in skip):
            raise TypeError(f"skip takes a sequence of name patterns, got {skip!r}; write ('head', 'stem.*')")
        self.begin_epoch = begin_epoch
        self.skip = tuple(skip)
        self._layers: dict[str, FakeQuantization] = {}
        self._saved: Mapping[str, Tensor] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that the epoch comes and that there is a layer to quantize; go first among the callbacks.

        So the model is in float when a pruning callback, wherever it stands, removes channels at the end of the fit.
        """
        if stage != "fit":
            return
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        callbacks.sort(key=lambda callback: callback is not self)
        self._first_epoch(trainer)
        if next(quantizable(pl_module, self.skip), None) is None:
            raise ValueError(
                f"QuantizationAware: {type(pl_module).__name__} has no Linear or convolution to quantize besides"
                f" skip={self.skip}"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on rounding in a run that was stopped in the middle of an epoch."""
        self._begin(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to round."""
        self._begin(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        """Round after the masks, also after those that were written anew."""
        for path, layer in self._layers.items():
            module = pl_module.get_submodule(path)
            if not layer.is_last(module):
                layer.attach(module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Let the ranges follow the batch."""
        update_ranges(self._layers)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the model in float."""
        self._end()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the model in float."""
        self._end()

    def state_dict(self) -> dict[str, Any]:
        """Return the ranges of the inputs."""
        known = {path: one.range for path, one in self._layers.items() if one.range is not None}
        return {"ranges": known or dict(self._saved)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the ranges of a run that was stopped."""
        ranges = state_dict.get("ranges") if isinstance(state_dict, Mapping) else None
        if not isinstance(ranges, dict) or not all(
            isinstance(value, Tensor) and value.shape == (2,) and value.dtype in _WIDE and not value.is_meta
            for value in ranges.values()
        ):
            raise CheckpointError(
                "the checkpoint's state of QuantizationAware holds no ranges: it is of another version"
            )
        self._saved = ranges

    def _begin(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.current_epoch < self._first_epoch(trainer) or self._layers:
            return
        for path, layer in quantizable(module, self.skip):
            self._layers[path] = FakeQuantization(self._saved.get(path))
            self._layers[path].attach(layer)
        self._saved = {}

    def _end(self) -> None:
        for layer in self._layers.values():
            layer.remove()
        self._layers = {}

    def _first_epoch(self, trainer: Trainer) -> int:
        epochs = trainer.max_epochs
        if epochs is None or epochs < 0:
            if self.begin_epoch < 0:
                raise ValueError(
                    f"QuantizationAware: begin_epoch={self.begin_epoch} counts from the end, and the trainer has no"
                    " max_epochs: pass Trainer(max_epochs=…), or begin_epoch from 0"
                )
            return self.begin_epoch
        first = self.begin_epoch + epochs * (self.begin_epoch < 0)
        if not 0 <= first < epochs:
            raise ValueError(
                f"QuantizationAware: begin_epoch={self.begin_epoch} is no epoch of a run of {epochs}; choose from"
                f" {-epochs} to {epochs - 1}"
            )
        return first
