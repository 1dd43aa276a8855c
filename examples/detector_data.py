"""Coloured shapes on noisy images, and boxes drawn on them; nothing is downloaded."""

from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

LABELS = ["square", "circle", "triangle"]
SIDE = 96
"""Of an image, in pixels."""
COLOURS = ((255, 80, 60), (60, 220, 90), (80, 140, 255))


def shapes(seed: int, side: int = SIDE) -> tuple[Tensor, Tensor, Tensor]:
    """Return an image (3, side, side) in [0, 1], boxes (n, 4) in pixels and classes (n,) of one to three shapes."""
    draw = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side]
    image = draw.uniform(0, 0.5, (3, 1, 1)) + draw.normal(0, 0.08, (3, side, side))
    boxes, classes = [], []
    for _ in range(draw.integers(1, 4)):
        half = draw.uniform(0.08, 0.17) * side
        x, y = draw.uniform(half, side - half, 2)
        if any(abs(x - a) < half + b and abs(y - c) < half + b for a, c, b in boxes):
            continue
        kind = draw.integers(len(LABELS))
        dx, dy = np.abs(columns + 0.5 - x), rows + 0.5 - y
        inside = np.maximum(dx, np.abs(dy)) < half, dx**2 + dy**2 < half**2, (dy < half) & (2 * dx < dy + half)
        image[:, inside[kind]] += draw.uniform(0.3, 0.9, (3, 1))
        boxes.append((x, y, half))
        classes.append(kind)
    corners = [(x - half, y - half, x + half, y + half) for x, y, half in boxes]
    return torch.tensor(image.clip(0, 1)).float(), torch.tensor(corners).float(), torch.tensor(classes)


def collated(samples: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Return a batch as torchvision's and torchmetrics' detectors have it: images, and a dict for each."""
    return torch.stack([x for x, _, _ in samples]), [{"boxes": b, "labels": c} for _, b, c in samples]


def loader(count: int, first: int, **options: Any) -> torch.utils.data.DataLoader:
    """Return batches of 16 images with these seeds."""
    samples = [shapes(seed) for seed in range(first, first + count)]
    return torch.utils.data.DataLoader(samples, 16, collate_fn=collated, **options)  # type: ignore[arg-type]


def drawn(image: Tensor, detected: dict[str, Tensor], confidence: float = 0.4, scale: int = 3) -> Image.Image:
    """Return an image with its boxes."""
    pixels = (image.permute(1, 2, 0) * 255).byte().numpy()
    picture = Image.fromarray(pixels).resize((scale * image.shape[2], scale * image.shape[1]), Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(picture)
    for box, score, label in zip(*(detected[key] for key in ("boxes", "scores", "labels")), strict=True):
        if score >= confidence:
            corners = [scale * float(x) for x in box]
            pen.rectangle(corners, outline=COLOURS[label], width=2)
            # above the box, or below where the image ends
            place = (corners[0], corners[1] - 14 if corners[1] > 14 else corners[3] + 2)
            pen.rectangle(pen.textbbox(place, text := f"{LABELS[label]} {score:.2f}"), fill=COLOURS[label])
            pen.text(place, text, fill="white")
    return picture


def beside(pictures: list[Image.Image]) -> Image.Image:
    """Return pictures of one size in a row."""
    width, height = pictures[0].size
    row = Image.new("RGB", (width * len(pictures), height))
    for index, picture in enumerate(pictures):
        row.paste(picture, (index * width, 0))
    return row
