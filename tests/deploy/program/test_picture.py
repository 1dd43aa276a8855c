"""A picture: what the manifest says of it, and that the vectors of both phones resize as torchvision does."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("executorch")

from deploy_models import EXAMPLE, small
from vectors.pictures import antialiased, placement

from lightning_prune.deploy import Crop, Normalize, Pad, Picture, Stretch, TensorSpec, export
from lightning_prune.deploy.program.picture import check_picture

RGB = Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def spec(*shape: int, dtype: torch.dtype = torch.float32) -> TensorSpec:
    return TensorSpec("image", shape, dtype)


@pytest.mark.parametrize(("fit", "values"), [
    (Crop(), {"fit": "crop"}), (Crop(256), {"fit": "crop", "resize": 256}), (Stretch(), {"fit": "stretch"}),
    (Pad(), {"fit": "pad", "fill": 114}),
])  # fmt: skip
def test_each_fit_is_in_the_manifest(fit: Crop | Stretch | Pad, values: dict[str, Any]) -> None:
    assert Picture(fit).to_json() == values
    assert Picture(fit, RGB).to_json() == values | {"mean": list(RGB.mean), "std": list(RGB.std)}
    assert Picture.from_json(values) == Picture(fit)
    assert Picture.from_json(Picture(fit, RGB).to_json()) == Picture(fit, RGB)


def test_export_keeps_it_for_the_app(tmp_path: Path) -> None:
    picture = Picture(Crop(8), Normalize([0.5], [0.25]))
    artifact = export(small(), tmp_path / "m.pte", example_inputs=EXAMPLE, picture=picture)
    written = json.loads(artifact.manifest_path.read_text())
    assert written["picture"] == {"fit": "crop", "resize": 8, "mean": [0.5], "std": [0.25]}
    assert artifact.picture == picture


@pytest.mark.parametrize(("picture", "image", "word"), [
    (Picture(), spec(1, 8), r"must be \(N, 1 or 3, H, W\)"),
    (Picture(), spec(1, 4, 8, 8), "1 or 3"),
    (Picture(), spec(1, 3, 8, 8, dtype=torch.int64), "float32 or uint8"),
    (Picture(Crop(7)), spec(1, 3, 6, 8), "smaller than the first input"),
    (Picture(normalize=RGB), spec(1, 3, 8, 8, dtype=torch.uint8), "leave Picture.normalize out"),
    (Picture(normalize=RGB), spec(1, 1, 8, 8), "has not the channels"),
])  # fmt: skip
def test_a_picture_that_does_not_make_the_input(picture: Picture, image: TensorSpec, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        check_picture(picture, image)


def test_a_picture_that_makes_the_input() -> None:
    check_picture(None, spec(1, 8))
    check_picture(Picture(Crop(8), RGB), spec(2, 3, 6, 8))
    check_picture(Picture(Pad()), spec(1, 3, 6, 8, dtype=torch.uint8))


def test_values_of_other_kinds_and_ranges() -> None:
    with pytest.raises(TypeError, match=r"picture: got a Crop, must be Picture"):
        check_picture(Crop(), spec(1, 3, 8, 8))
    with pytest.raises(TypeError, match=r"Picture\.fit: got a str"):
        Picture("crop")  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match=r"Picture\.normalize: got a float"):
        Picture(normalize=0.5)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"Crop\.resize must be at least 1"):
        Crop(0)
    with pytest.raises(ValueError, match=r"Pad\.fill: got 256, must be at most 255"):
        Pad(256)


@pytest.mark.parametrize(
    ("size", "to"), [((20, 13), (7, 5)), ((9, 16), (18, 40)), ((31, 18), (17, 18)), ((8, 8), (8, 8))]
)
def test_the_vectors_resize_as_torchvision_does(size: tuple[int, int], to: tuple[int, int]) -> None:
    """torchvision's Resize of tensors is this very call."""
    image = np.random.default_rng(0).random(size)
    ours = antialiased(size[0], to[0]) @ image @ antialiased(size[1], to[1]).T
    theirs = F.interpolate(torch.tensor(image)[None, None], to, mode="bilinear", antialias=True)[0, 0]
    assert np.allclose(ours, theirs, atol=1e-12)


@pytest.mark.parametrize(("size", "resize", "place"), [
    ((480, 640), 256, [-16, -58, 256, 341]),  # 117 columns too many: halves go to the even number
    ((640, 480), 256, [-58, -16, 341, 256]),
    ((300, 300), 224, [0, 0, 224, 224]),
])  # fmt: skip
def test_the_vectors_crop_as_torchvision_does(size: tuple[int, int], resize: int, place: list[int]) -> None:
    """What Resize(resize) and CenterCrop(224) of torchvision 0.24 give."""
    assert placement({"fit": "crop", "resize": resize}, *size, 224, 224) == place
