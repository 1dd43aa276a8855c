"""How an app makes the picture of a camera into the first input of a program."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from lightning_prune.deploy.program.preprocessing import Normalize
from lightning_prune.deploy.program.signature import TensorSpec
from lightning_prune.values import check_whole


@dataclass(frozen=True)
class Crop:
    """The middle of the picture, as torchvision's ``Resize(resize)`` and ``CenterCrop`` cut it out.

    Args:
        resize: the shorter side of the resized picture, from which the input's height and width are cut. None: the
            picture just covers the input.
    """

    resize: int | None = None

    def __post_init__(self) -> None:
        if self.resize is not None:
            check_whole("Crop.resize", self.resize, 1, "pixels")

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values, for the manifest."""
        return {"fit": "crop"} if self.resize is None else {"fit": "crop", "resize": self.resize}


@dataclass(frozen=True)
class Stretch:
    """The whole picture at the input's height and width, whatever becomes of its proportions."""

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values, for the manifest."""
        return {"fit": "stretch"}


@dataclass(frozen=True)
class Pad:
    """The whole picture in its proportions, in the middle of a plain border, as detectors take it ("letterbox").

    Args:
        fill: of the border in each channel, 0 to 255.
    """

    fill: int = 114

    def __post_init__(self) -> None:
        check_whole("Pad.fill", self.fill, 0)
        if self.fill > 255:
            raise ValueError(f"Pad.fill: got {self.fill}, must be at most 255")

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values, for the manifest."""
        return {"fit": "pad", "fill": self.fill}


@dataclass(frozen=True)
class Picture:
    """What an app does to a camera's picture before the program sees it; the manifest tells it, the bundles do it.

    The picture is turned upright, resized as torchvision's ``Resize`` does (bilinear, with antialiasing), fitted,
    brought to [0, 1] and normalised; a program of uint8 images takes 0 to 255, one of a single channel the luminance.

    Args:
        fit: ``Crop()``, ``Stretch()`` or ``Pad()``.
        normalize: (x - mean) / std by channel in the app, for a program that takes float32; with ``preprocess=`` the
            program does that itself. None: values in [0, 1].

    Example:
        >>> Picture(Crop(resize=256)).to_json()
        {'fit': 'crop', 'resize': 256}
    """

    fit: Crop | Stretch | Pad = field(default_factory=Crop)
    normalize: Normalize | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.fit, Crop | Stretch | Pad):
            raise TypeError(f"Picture.fit: got a {type(self.fit).__name__}, must be Crop(), Stretch() or Pad()")
        if self.normalize is not None and not isinstance(self.normalize, Normalize):
            raise TypeError(
                f"Picture.normalize: got a {type(self.normalize).__name__}, must be Normalize(mean=[…], std=[…])"
            )

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Picture":
        """Return the picture that gave these values.

        Raises:
            KeyError, TypeError, ValueError: none did.
        """
        match values["fit"]:
            case "crop":
                fit = Crop(values.get("resize"))
            case "stretch":
                fit = Stretch()
            case "pad":
                fit = Pad(values["fill"])
            case other:
                raise ValueError(f"pictures are fitted by {other!r:.60}")
        is_normalised = "mean" in values or "std" in values
        return cls(fit, Normalize(values["mean"], values["std"]) if is_normalised else None)

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values, for the manifest."""
        values = self.normalize
        return self.fit.to_json() | ({} if values is None else {"mean": list(values.mean), "std": list(values.std)})


NO_PICTURE = (
    "No picture was given: the app cuts the middle out of the camera's picture and passes values in [0, 1], without"
    " mean and std. If the model was trained on anything else, say so with picture=Picture(…)."
)
"""What an app's folder without one is told."""


def takes_pictures(image: TensorSpec) -> bool:
    """Whether an input is a batch of images, grey or coloured, in a dtype that an app fills with a picture."""
    shape = image.shape
    return len(shape) == 4 and shape[1] in (1, 3) and image.dtype in (torch.float32, torch.uint8)


def check_picture(picture: object, image: TensorSpec) -> None:
    """Check it against the first input of ``forward``, which it makes; None is none.

    Raises:
        TypeError: it is no picture.
        ValueError: the input is no batch of images with 1 or 3 channels in float32 or uint8, larger than the picture
            that it is cut from, of other channels than the normalisation, or of bytes, which are not normalised.
    """
    if picture is None:
        return
    if not isinstance(picture, Picture):
        raise TypeError(f"picture: got a {type(picture).__name__}, must be Picture(Crop(resize=256)) or the like")
    shape, fit, values = image.shape, picture.fit, picture.normalize
    if not takes_pictures(image):
        raise ValueError(f"picture: the first input is {image}, must be (N, 1 or 3, H, W) of float32 or uint8")
    if isinstance(fit, Crop) and fit.resize is not None and fit.resize < max(shape[2:]):
        raise ValueError(f"picture: {fit} is smaller than the first input, {image}, which is cut from it")
    if values is not None and image.dtype == torch.uint8:
        raise ValueError(f"picture: the program takes bytes ({image}): leave Picture.normalize out")
    if values is not None and len(values.mean) != shape[1]:
        raise ValueError(f"picture: {values} has not the channels of the first input, {image}")
