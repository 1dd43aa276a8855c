"""Pictures and drawings, and the inputs that programs get for them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from vectors.manifests import BYTES, FLOAT, RGB
from vectors.outputs import rounded

BATCH = {"name": "x", "shape": [2, 3, 6, 6], "dtype": "float32"}
GROWING = {"name": "x", "shape": [4, 1, 3, 2], "dtype": "float32", "dynamic": {"0": [2, 8]}}
COLORS = {"name": "image", "shape": [1, 3, 6, 9], "dtype": "float32"}
COLOR_BYTES = COLORS | {"shape": [2, 3, 8, 8], "dtype": "uint8"}
GRAY = COLORS | {"shape": [1, 1, 7, 5]}


def resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the image at another size; each value is the mean over the area that it covers."""
    return _shares(image.shape[0], height) @ image @ _shares(image.shape[1], width).T


def _shares(old: int, new: int) -> np.ndarray:
    edges = np.arange(new + 1) * (old / new)
    cells = np.arange(old)
    covered = np.minimum(edges[1:, None], cells + 1) - np.maximum(edges[:-1, None], cells)
    return np.clip(covered, 0, None) * (new / old)


def image_input(image: np.ndarray, spec: dict[str, Any]) -> tuple[list[int], np.ndarray]:
    """Return the shape and the values that a program gets for a picture."""
    batch, channels, height, width = spec["shape"]
    batch = spec.get("dynamic", {}).get("0", [batch])[0]
    small = resized(image, height, width)
    if spec["dtype"] == "uint8":
        small = np.floor(small.astype(np.float32).astype(np.float64) * 255 + 0.5)
    shape = [batch, channels, height, width]
    return shape, np.broadcast_to(small, shape).ravel()


def images(random: np.random.Generator) -> list[dict[str, Any]]:
    """Return pictures of several sizes with the input that each program gets."""
    cases = []
    for size, spec in (((8, 8), FLOAT), ((64, 64), FLOAT), ((13, 7), FLOAT), ((3, 5), FLOAT), ((10, 8), BYTES),
                       ((12, 18), BATCH), ((6, 6), GROWING)):  # fmt: skip
        image = random.integers(0, 65, size) / 64
        shape, values = image_input(image, spec)
        cases.append({"size": list(size), "pixels": image.ravel().tolist(), "input": spec, "shape": shape,
                      "values": rounded(values)})  # fmt: skip
    return cases


def placement(picture: dict[str, Any], height: int, width: int, rows: int, columns: int) -> list[int]:
    """Return top, left, height and width of a picture over an input, as torchvision's Resize and CenterCrop round."""
    if picture["fit"] == "stretch":
        return [0, 0, rows, columns]
    if picture["fit"] == "pad":
        scale = min(rows / height, columns / width)
        tall, wide = max(1, round(height * scale)), max(1, round(width * scale))
        return [(rows - tall) // 2, (columns - wide) // 2, tall, wide]
    if "resize" in picture:
        side = picture["resize"]
        tall, wide = (int(side * height / width), side) if width <= height else (side, int(side * width / height))
    elif rows / height >= columns / width:
        tall, wide = rows, rows * width // height
    else:
        tall, wide = columns * height // width, columns
    return [-round((tall - rows) / 2.0), -round((wide - columns) / 2.0), tall, wide]


def antialiased(old: int, new: int) -> np.ndarray:
    """Return the weights, (new, old), of a bilinear resize with antialiasing."""
    scale = old / new
    centers = (np.arange(new) + 0.5) * scale
    weights = np.clip(1 - np.abs(np.arange(old) + 0.5 - centers[:, None]) / max(scale, 1), 0, None)
    return weights / weights.sum(1, keepdims=True)


def picture_input(
    image: np.ndarray, picture: dict[str, Any], spec: dict[str, Any]
) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Return the placement of an upright picture (height, width, 3), the input's channels in 0...255, its values."""
    batch, count, rows, columns = spec["shape"]
    place = top, left, tall, wide = placement(picture, image.shape[0], image.shape[1], rows, columns)
    resized = np.einsum("yh,xw,hwc->cyx", antialiased(image.shape[0], tall), antialiased(image.shape[1], wide), image)
    if count == 1:
        resized = np.tensordot([[0.299, 0.587, 0.114]], resized, 1)
    channels = np.full((count, rows, columns), float(picture.get("fill", 0)))
    inside = resized[:, max(0, -top) :, max(0, -left) :][:, : rows - max(0, top), : columns - max(0, left)]
    start = max(0, top), max(0, left)
    channels[:, start[0] : start[0] + inside.shape[1], start[1] : start[1] + inside.shape[2]] = inside
    mean, std = (np.reshape(picture.get(key, neutral), (-1, 1, 1)) for key, neutral in (("mean", 0.0), ("std", 1.0)))
    values = np.floor(channels + 0.5) if spec["dtype"] == "uint8" else (channels / 255 - mean) / std
    return place, channels, np.broadcast_to(values, (batch, count, rows, columns))


def pictures(random: np.random.Generator) -> list[dict[str, Any]]:
    """Return pictures in each rotation and fit, with their placement and the input that each program gets."""
    cases = []
    gray = {"mean": [0.5], "std": [0.25]}
    for size, rotation, picture, spec in (
        ((6, 9), 0, {"fit": "crop"}, COLORS), ((20, 13), 0, {"fit": "crop"} | RGB, COLORS),
        ((20, 13), 90, {"fit": "crop", "resize": 11} | RGB, COLORS), ((13, 20), 180, {"fit": "stretch"}, COLORS),
        ((9, 16), 270, {"fit": "pad", "fill": 114}, COLOR_BYTES),
        ((16, 9), 90, {"fit": "crop", "resize": 9}, COLOR_BYTES), ((3, 4), 270, {"fit": "pad", "fill": 0}, GRAY),
        ((17, 11), 0, {"fit": "stretch"} | gray, GRAY), ((1, 40), 0, {"fit": "pad", "fill": 255}, COLORS),
        ((5, 4), 90, {"fit": "crop"}, COLORS), ((31, 18), 0, {"fit": "crop", "resize": 10}, GRAY),
    ):  # fmt: skip
        raw = random.integers(0, 256, (*size, 3))
        place, channels, values = picture_input(np.rot90(raw, -rotation // 90), picture, spec)
        if spec["dtype"] == "uint8" and np.abs(channels % 1 - 0.5).min() < 1e-9:
            raise ValueError("a value between two bytes: its rounding would hang on the order of the additions")
        pixels = 0xFF << 24 | raw[..., 0] << 16 | raw[..., 1] << 8 | raw[..., 2]
        cases.append({"size": list(size), "rotation": rotation, "pixels": pixels.ravel().tolist(), "picture": picture,
                      "input": spec, "placement": place, "values": rounded(values)})  # fmt: skip
    return cases


def unfit_inputs() -> list[dict[str, Any]]:
    """Return inputs that no picture can be made into."""
    shapes = [[1, 8, 8], [1, 2, 8, 8], [1, 1, 0, 8], [], [0, 1, 8, 8]]
    return [FLOAT | {"shape": shape} for shape in shapes] + [FLOAT | {"dtype": dtype} for dtype in ("int64", "float16")]


def framed(image: np.ndarray) -> np.ndarray:
    """Return the ink alone, in the middle of the smallest square that holds it."""
    rows, columns = np.nonzero((image > 0.05).any(1))[0], np.nonzero((image > 0.05).any(0))[0]
    if not rows.size:
        return image
    ink = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    side = max(ink.shape)
    result = np.zeros((side, side))
    top, left = (side - ink.shape[0]) // 2, (side - ink.shape[1]) // 2
    result[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
    return result


def drawings() -> list[dict[str, Any]]:
    """Return lines of ink, with the picture that they make and the framed one."""
    cases = []
    for lines in ([], [[0.5, 0.5, 0.5, 0.5]], [[0.25, 0.1, 0.3, 0.9]], [[0.1, 0.2, 0.9, 0.2], [0.9, 0.2, 0.4, 0.95]],
                  [[0.8, 0.8, 1.4, 1.2]]):  # fmt: skip
        image = ink(lines, size=24, radius=1.5)
        frame = framed(image)
        cases.append({"size": 24, "radius": 1.5, "lines": lines, "pixels": rounded(image), "side": len(frame),
                      "framed": rounded(frame)})  # fmt: skip
    return cases


def ink(lines: Sequence[Sequence[float]], size: int, radius: float) -> np.ndarray:
    """Return lines of ink on paper: 1 within the radius, falling to 0 over one cell."""
    y, x = np.mgrid[:size, :size] + 0.5
    result = np.zeros((size, size))
    for line in lines:
        start, end = np.array(line).reshape(2, 2) * size
        along = end - start
        square = max(float(along @ along), 1e-300)
        share = np.clip(((x - start[0]) * along[0] + (y - start[1]) * along[1]) / square, 0, 1)
        gap = np.hypot(x - start[0] - share * along[0], y - start[1] - share * along[1])
        result = np.maximum(result, np.clip(radius + 0.5 - gap, 0, 1))
    return result
