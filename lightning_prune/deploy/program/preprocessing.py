"""What happens to an image before the network, folded into the program."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_prune.deploy.program.signature import describe


@dataclass(frozen=True)
class Normalize:
    """Lets the program take a uint8 image (N, C, H, W) of values 0 to 255: y = (x / 255 − mean) / std by channel.

    That is torchvision's ``ToTensor`` and ``Normalize``: the app hands over the camera's bytes.

    Args:
        mean: of each channel, of values in [0, 1].
        std: of each channel, above 0.

    Raises:
        ValueError: their numbers differ or are none, one is not finite, or a standard deviation is not above 0.

    Example:
        >>> Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]).to_json()["input"]
        'uint8'
    """

    mean: Sequence[float]
    std: Sequence[float]

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            given = getattr(self, name)
            values = (given,) if isinstance(given, int | float) else tuple(map(float, given))
            if not values or not all(map(math.isfinite, values)):
                raise ValueError(f"Normalize.{name}: got {given!r}, must be one finite number per channel")
            object.__setattr__(self, name, values)
        if len(self.mean) != len(self.std):
            raise ValueError(
                f"Normalize: got {len(self.mean)} means and {len(self.std)} deviations, one per channel each"
            )
        if min(self.std) <= 0:
            raise ValueError(f"Normalize.std: got {self.std}, every one must be above 0")

    def module(self) -> nn.Module:
        """Return it as a module: (N, C, H, W) uint8 -> float32."""
        return _Normalization(self)

    def image_like(self, x: Tensor) -> Tensor:
        """Return an example for the program: ``x`` where it is uint8, else a random image of its shape.

        Raises:
            ValueError: it is no batch of images with these channels.
        """
        if x.ndim != 4 or x.shape[1] != len(self.mean):
            raise ValueError(
                f"preprocess: Normalize with {len(self.mean)} channels takes a first input of shape"
                f" (N, {len(self.mean)}, H, W), got {describe([x])}"
            )
        if x.dtype == torch.uint8:
            return x
        generator = torch.Generator().manual_seed(0)
        return torch.randint(0, 256, tuple(x.shape), generator=generator, dtype=torch.uint8)

    def image_of(self, x: Tensor, where: str) -> Tensor:
        """Return the uint8 image that a normalised one was made of; uint8 is returned as it is.

        Args:
            x: (N, C, H, W).
            where: of the loader, in errors.

        Raises:
            ValueError: it was not made by this mean and std of an image of 256 levels.
        """
        if x.dtype == torch.uint8 or x.ndim != 4 or x.shape[1] != len(self.mean) or not x.is_floating_point():
            return x
        levels = 255 * (x.double() * _per_channel(self.std) + _per_channel(self.mean))
        rounded = levels.round()
        if not bool(((levels - rounded).abs() < 0.01).all()) or rounded.min() < 0 or rounded.max() > 255:
            raise ValueError(
                f"{where}: a batch holds values that {self} does not make of a uint8 image: give uint8 images, or leave"
                " preprocess= out and normalise in the app"
            )
        return rounded.to(torch.uint8)

    def images(self, loader: Iterable[Any], where: str) -> "Images":
        """Return a loader whose first inputs are the uint8 images of those in ``loader``."""
        return Images(self, loader, where)

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values, for the manifest."""
        return {"kind": "normalize", "mean": list(self.mean), "std": list(self.std), "input": "uint8"}


@dataclass(frozen=True)
class Images:
    """A loader of images as the program takes them; see :meth:`Normalize.images`."""

    preprocess: Normalize
    loader: Iterable[Any]
    where: str

    def __iter__(self) -> Iterator[Any]:
        return (self._converted(batch) for batch in self.loader)

    def _converted(self, batch: Any) -> Any:  # noqa: ANN401
        if isinstance(batch, Tensor):
            return self.preprocess.image_of(batch.detach().cpu(), self.where)
        if isinstance(batch, tuple | list) and batch:
            return [self._converted(batch[0]), *batch[1:]]
        return batch


class _Normalization(nn.Module):
    def __init__(self, values: Normalize) -> None:
        super().__init__()
        self.scale: Tensor
        self.shift: Tensor
        mean, std = _per_channel(values.mean), _per_channel(values.std)
        self.register_buffer("scale", (1 / (255 * std)).float(), persistent=False)
        self.register_buffer("shift", (-mean / std).float(), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        return image.to(torch.float32) * self.scale + self.shift


def _per_channel(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).reshape(1, -1, 1, 1)
