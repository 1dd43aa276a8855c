"""The shapes that the detector's example draws, always; its network where ultralytics is, which no extra installs."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parent.parent


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    import detector_data  # type: ignore[import-not-found]

    yield detector_data
    sys.modules.pop("detector_data", None)


@pytest.fixture
def model(data: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    # torchvision, where it is of another build of torch than this one, cannot be imported without
    pytest.importorskip("projects")
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path / "settings"))
    pytest.importorskip("ultralytics", reason="needs ultralytics, which is AGPL-3.0: pip install ultralytics")
    pytest.importorskip("pycocotools", reason="torchmetrics' MeanAveragePrecision needs it: pip install pycocotools")
    import detector_model  # type: ignore[import-not-found]

    yield detector_model
    sys.modules.pop("detector_model", None)


def test_a_box_holds_its_shape_and_nothing_else_is_bright(data: Any) -> None:
    for seed in range(20):
        image, boxes, classes = data.shapes(seed)
        assert torch.equal(image, data.shapes(seed)[0])
        assert 1 <= len(boxes) == len(classes) <= 3
        outside = torch.ones(image.shape[1:], dtype=torch.bool)
        for left, top, right, bottom in boxes.round().int().tolist():
            outside[top:bottom, left:right] = False
        centres = ((boxes[:, :2] + boxes[:, 2:]) / 2).int().tolist()
        ground = image[:, outside].mean(1)
        for x, y in centres:
            assert float((image[:, y - 2 : y + 2, x - 2 : x + 2].mean((1, 2)) - ground).max()) > 0.15


def test_sure_boxes_are_drawn_in_the_colour_of_their_class_and_others_are_not(data: Any) -> None:
    boxes = torch.tensor([[10.0, 20.0, 40.0, 60.0], [50.0, 50.0, 80.0, 80.0]])
    detected = {"boxes": boxes, "scores": torch.tensor([0.9, 0.1]), "labels": torch.tensor([1, 2])}
    picture = data.drawn(torch.zeros(3, 96, 96), detected)
    assert picture.size == (288, 288)
    assert picture.getpixel((30, 120)) == picture.getpixel((120, 100)) == data.COLOURS[1]
    assert picture.getpixel((150, 200)) == picture.getpixel((75, 120)) == (0, 0, 0)
    assert data.beside([picture, picture]).size == (576, 288)


def test_true_boxes_are_detected_and_doubled_ones_are_not(model: Any) -> None:
    # two anchors on a square, the second less sure; one on a circle at the same place; one below the confidence
    anchors = [
        (20, 30, 10, 12, 0.9, 0, 0),
        (21, 30, 10, 12, 0.6, 0, 0),
        (20, 30, 10, 12, 0, 0.8, 0),
        (70, 70, 9, 9, 0, 0, 0.01),
    ]
    (detected,) = model.detections(torch.tensor(anchors).float().T[None])
    assert detected["boxes"].tolist() == [[15, 24, 25, 36], [15, 24, 25, 36]]
    assert detected["labels"].tolist() == [0, 1]
    assert torch.equal(detected["scores"], torch.tensor([0.9, 0.8]))
