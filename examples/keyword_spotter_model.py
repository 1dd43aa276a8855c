"""A streaming network: one module that learns on whole streams at once and hears 10 ms a call on the phone."""

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from keyword_spotter_data import HOP, RATE, Stream
from torch import Tensor, nn

from lightning_prune import PruningMixin


class Causal(nn.Conv1d):
    """A convolution without padding that goes on from the last inputs of the calls before, kept in ``past``.

    A stream in one call and the same stream in steps of one stride give the same. Only such a step moves ``past``, so
    that a batch of streams begins from silence.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, **options: int) -> None:
        super().__init__(inputs, outputs, kernel, **options)
        kept = (kernel - 1) * self.dilation[0] + 1 - self.stride[0]
        self.register_buffer("past", torch.zeros(1, inputs, kept))

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, inputs, strides * steps) to (batch, outputs, steps)."""
        past, is_step = self.get_buffer("past"), x.shape[2] == self.stride[0]
        x = torch.cat([past.expand(len(x), -1, -1), x], 2)
        if is_step:
            past.copy_(x[:, :, self.stride[0] :])
        return super().forward(x)


class Spotter(PruningMixin, L.LightningModule):
    """Energies of 24 bands, and five convolutions that look further and further back: 0.63 s in all."""

    def __init__(self, width: int = 96, bands: int = 24, rate: float = 4e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.rate, self.example_input_array = rate, torch.zeros(1, 1, HOP)
        self.bank = Causal(1, 2 * bands, 2 * HOP, stride=HOP).requires_grad_(False)
        hertz = 700 * (10 ** (torch.linspace(120, 2100, bands) / 2595) - 1)  # evenly in mel
        turns = 2 * torch.pi * hertz[:, None] / RATE * torch.arange(2 * HOP)
        self.bank.weight.copy_((torch.cat([turns.cos(), turns.sin()]) * torch.hann_window(2 * HOP))[:, None])
        self.bank.get_parameter("bias").zero_()
        layers: list[nn.Module] = [nn.BatchNorm1d(bands)]
        for inputs, dilation in zip([bands, *[width] * 4], (1, 2, 4, 8, 16), strict=True):
            layers += [Causal(inputs, width, 3, dilation=dilation), nn.BatchNorm1d(width), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Conv1d(width, 1, 1))

    def forward(self, samples: Tensor) -> Tensor:
        """Return for each step of samples (batch, 1, 80 * steps) how sure it is that the keyword ends there."""
        real, imaginary = self.bank(samples).chunk(2, 1)
        return self.layers((real.square() + imaginary.square() + 1e-4).log())

    def loss(self, batch: list[Tensor]) -> Tensor:
        """Return the cross-entropy; a step of the keyword counts as three others."""
        samples, wanted = batch
        scores = self(samples[:, None])[:, 0]
        return nn.functional.binary_cross_entropy_with_logits(scores, wanted, pos_weight=torch.tensor(3.0))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the loss."""
        return self.loss(batch)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Log the loss."""
        self.log("val_loss", self.loss(batch), prog_bar=True)

    def configure_optimizers(self) -> dict[str, Any]:
        """Return AdamW with one cycle of the learning rate."""
        optimizer = torch.optim.AdamW(self.parameters(), self.rate, weight_decay=0.01)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.rate, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def steps(heard: Stream) -> list[Tensor]:
    """Return what the network takes call by call."""
    return list(torch.from_numpy(heard.samples).view(-1, 1, 1, HOP))


def scores(path: Path, several: list[Stream]) -> list[np.ndarray]:
    """Return what a file says at each step of streams, each from silence.

    An hour is 360,000 steps: they are run in this process, while a RuntimeModel asks another one at each call.
    """
    from executorch.runtime import Runtime

    rows = []
    for heard in several:
        program = Runtime.get().load_program(path)  # loaded anew it has heard nothing
        method = program.load_method("forward")
        if method is None:
            raise FileNotFoundError(f"{path} has no method forward")
        rows.append(np.array([float(method.execute([step])[0]) for step in steps(heard)]))
    return rows
