"""Printable characters as 32x32 images, and a network that reads them; nothing is downloaded.

The glyphs are rendered from the fonts that matplotlib ships. Each image is one that was turned, scaled, sheared and
shifted, blurred, dimmed and made noisy, all at random: anew in every step of training, by a seed for testing. The fonts
for testing are not among those for training.
"""

from functools import cache
from pathlib import Path
from typing import Any

import lightning as L
import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from lightning_prune import PruningMixin

LABELS = [chr(code) for code in range(33, 127)]
"""The 94 printable characters of ASCII, without the blank."""

DIGITS = list("0123456789")

TEST_FONTS = ("DejaVuSans-Oblique", "DejaVuSansMono-Bold", "DejaVuSerif-BoldItalic", "STIXGeneralItalic")
TRAIN_FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-BoldOblique", "DejaVuSansMono", "DejaVuSansMono-Oblique"),
    *("DejaVuSansMono-BoldOblique", "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic"),
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralBolIta"),
)

SIDE = 32


@cache
def _rendered(fonts: tuple[str, ...]) -> Tensor:
    """Return the clean glyphs in [0, 1], shape (fonts * 94, 1, 32, 32), all at one size and on one baseline."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    large = torch.stack([_glyph(folder / f"{font}.ttf", label) for font in fonts for label in LABELS])
    return F.avg_pool2d(large[:, None], 2)


def _glyph(path: Path, label: str) -> Tensor:
    font = ImageFont.truetype(str(path), 44)
    left, _, right, _ = font.getbbox(label, anchor="ls")
    image = Image.new("L", (2 * SIDE, 2 * SIDE))
    ImageDraw.Draw(image).text((SIDE - (left + right) / 2, 46), label, fill=255, font=font, anchor="ls")
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255)


def glyphs(times: int, fonts: tuple[str, ...] = TRAIN_FONTS) -> TensorDataset:
    """Return each clean glyph of these fonts so many times, and its class: an epoch of training."""
    targets = torch.arange(len(LABELS)).repeat(times * len(fonts))
    return TensorDataset(_rendered(fonts).repeat(times, 1, 1, 1), targets)


def characters(each: int, fonts: tuple[str, ...] = TRAIN_FONTS, seed: int = 0) -> TensorDataset:
    """Return distorted images (94 * each, 1, 32, 32) and their classes, so many of each character.

    Args:
        each: images of each character.
        fonts: to draw from, at random.
        seed: of everything random.
    """
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(len(LABELS)).repeat(each)
    chosen = torch.randint(len(fonts), (len(targets),), generator=generator) * len(LABELS) + targets
    parts = [distorted(_rendered(fonts)[part], generator) for part in chosen.split(512)]
    return TensorDataset(torch.cat(parts), targets)


def distorted(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Distort clean images (n, 1, 32, 32), each differently: affine, blur, contrast, noise; around zero in the end."""
    count = len(images)

    def between(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    angle, shear, width, height = between(-0.2, 0.2), between(-0.2, 0.2), between(0.85, 1.2), between(0.85, 1.2)
    top = torch.stack([width * angle.cos(), shear - height * angle.sin(), between(-0.15, 0.15)], dim=1)
    bottom = torch.stack([width * angle.sin(), height * angle.cos(), between(-0.15, 0.15)], dim=1)
    grid = F.affine_grid(torch.stack([top, bottom], dim=1), [count, 1, SIDE, SIDE], align_corners=False)
    moved = F.grid_sample(images, grid, align_corners=False)
    kernel = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    blurred = F.conv2d(moved, (kernel[:, None] * kernel)[None, None], padding=2)
    share, contrast, noise = (between(*ends)[:, None, None, None] for ends in ((0, 1.3), (0.4, 1.0), (0.02, 0.2)))
    mixed = (moved + share * (blurred - moved)) * contrast
    return 2 * (mixed + noise * torch.randn(mixed.shape, generator=generator)) - 0.5


class Block(nn.Module):
    """Two 3x3 convolutions with batch norm beside a shortcut; halves height and width."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, 2, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, inputs, height, width) to (batch, outputs, height / 2, width / 2)."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class Reader(PruningMixin, L.LightningModule):
    """A residual network for images (batch, 1, 32, 32): 1.9 million multiply-accumulates at width 16."""

    def __init__(self, width: int = 16, classes: int = 94, rate: float = 4e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.rate, self.is_distorting = rate, True
        self.example_input_array = torch.zeros(1, 1, 32, 32)
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks = nn.Sequential(Block(width, 2 * width), Block(2 * width, 4 * width))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, classes))

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (batch, classes)."""
        return self.head(self.blocks(self.stem(images)))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the cross-entropy; clean glyphs are distorted anew, other images are taken as they are."""
        return F.cross_entropy(self(distorted(batch[0]) if self.is_distorting else batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Log the accuracy."""
        self.log("val_acc", (self(batch[0]).argmax(1) == batch[1]).float().mean(), prog_bar=True)

    def configure_optimizers(self) -> dict[str, Any]:
        """Return AdamW with one cycle of the learning rate."""
        optimizer = torch.optim.AdamW(self.parameters(), self.rate, weight_decay=1e-3)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.rate, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
