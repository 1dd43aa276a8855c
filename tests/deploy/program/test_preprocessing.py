from pathlib import Path

import numpy as np
import pytest
import torch
from deploy_models import images, small
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_prune.deploy import RuntimeModel, export, load_manifest
from lightning_prune.deploy.program.preprocessing import Normalize

RGB = Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
GREY = Normalize(mean=[0.25], std=[0.5])


def levels(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def normalised(values: Normalize, image: Tensor) -> Tensor:
    """What torchvision's ToTensor and Normalize give."""
    mean, std = (torch.tensor(v).reshape(1, -1, 1, 1) for v in (values.mean, values.std))
    return (image.float() / 255 - mean) / std


def test_module_against_numpy():
    image = levels(2, 3, 4, 5)
    mean, std = (np.array(v).reshape(1, -1, 1, 1) for v in (RGB.mean, RGB.std))
    expected = (image.numpy().astype(np.float64) / 255 - mean) / std
    np.testing.assert_allclose(RGB.module()(image).numpy(), expected, atol=1e-6)
    assert RGB.module()(image).dtype == torch.float32


@given(st.integers(0, 1000))
def test_image_of_a_normalised_one_is_the_image(seed: int):
    image = levels(2, 3, 4, 4, seed=seed)
    assert torch.equal(RGB.image_of(normalised(RGB, image), "verify_on"), image)
    assert RGB.image_of(image, "verify_on") is image


def test_images_of_a_loader_of_any_form():
    image, target = levels(2, 1, 4, 4), torch.tensor([1, 0])
    batch = normalised(GREY, image)
    found = list(GREY.images([batch, (batch, target), [(batch,), target]], "verify_on"))
    assert torch.equal(found[0], image)
    assert torch.equal(found[1][0], image)
    assert torch.equal(found[1][1], target)
    assert torch.equal(found[2][0][0], image)


@pytest.mark.parametrize("wrong", [torch.full((1, 1, 2, 2), 9.0), torch.full((1, 1, 2, 2), 0.123)])
def test_values_that_are_of_no_image(wrong: Tensor):
    with pytest.raises(ValueError, match=r"verify_on: a batch holds values that Normalize\(mean=\(0.25,\)"):
        list(GREY.images([wrong], "verify_on"))


@pytest.mark.parametrize(
    ("mean", "std", "text"),
    [
        ([], [], "must be one finite number per channel"),
        ([0.5], [0.0], "every one must be above 0"),
        ([0.5], [-1.0], "every one must be above 0"),
        ([0.5, 0.5], [0.5], "got 2 means and 1 deviations"),
        ([float("nan")], [0.5], "must be one finite number per channel"),
    ],
)
def test_values_that_are_refused(mean: list[float], std: list[float], text: str):
    with pytest.raises(ValueError, match=text):
        Normalize(mean, std)


def test_example_of_another_number_of_channels(tmp_path: Path):
    pytest.importorskip("executorch", reason="needs the extra 'mobile' (executorch)")
    with pytest.raises(
        ValueError, match=r"Normalize with 3 channels takes .* \(N, 3, H, W\), got \(1, 1, 8, 8\) float32"
    ):
        export(small(), tmp_path / "m.pte", example_inputs=images(1), preprocess=RGB)


@pytest.mark.parametrize("example", [images(2), levels(2, 1, 8, 8)], ids=["as the model", "uint8"])
def test_program_takes_bytes(tmp_path: Path, example: Tensor):
    pytest.importorskip("executorch", reason="needs the extra 'mobile' (executorch)")
    image, targets = levels(5, 1, 8, 8), torch.zeros(5, dtype=torch.long)
    artifact = export(
        small(),
        tmp_path / "m.pte",
        example_inputs=example,
        preprocess=GREY,
        verify_on=[(normalised(GREY, image), targets)],
    )
    with torch.no_grad():
        expected = small().eval()(normalised(GREY, image[:2]))
    torch.testing.assert_close(RuntimeModel(artifact.path)(image[:2])[0], expected, rtol=0, atol=1e-4)
    manifest = load_manifest(artifact.path)
    assert manifest["methods"]["forward"]["inputs"][0]["dtype"] == "uint8"
    assert manifest["preprocessing"] == {"kind": "normalize", "mean": [0.25], "std": [0.5], "input": "uint8"}
    assert artifact.verified_samples == 5
    assert artifact.macs == 2 * (8 * 9 * 64 + 8 * 3)
