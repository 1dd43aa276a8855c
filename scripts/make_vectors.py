"""Write examples/shared/vectors.json: inputs, and what the phones' Kotlin and Swift logic must make of them.

The expected values are computed here with NumPy and by lightning_prune's own writer of manifests, not by the code
that is tested. Usage: python scripts/make_vectors.py [FILE]
"""

import base64
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lightning_prune.deploy.artifact.manifest import to_text
from lightning_prune.deploy.probe import Probe, ProbeInput, ProbeProgram
from lightning_prune.selection.cells import Kernel

TARGET = Path(__file__).parents[1] / "examples" / "shared" / "vectors.json"
PROGRAM = bytes(range(256)) * 3
FLOAT = {"name": "x", "shape": [1, 1, 8, 8], "dtype": "float32"}
BYTES = {"name": "image", "shape": [1, 3, 5, 4], "dtype": "uint8", "dynamic": {"0": [1, 8]}}
BATCH = {"name": "x", "shape": [2, 3, 6, 6], "dtype": "float32"}
GROWING = {"name": "x", "shape": [4, 1, 3, 2], "dtype": "float32", "dynamic": {"0": [2, 8]}}
COLORS = {"name": "image", "shape": [1, 3, 6, 9], "dtype": "float32"}
COLOR_BYTES = COLORS | {"shape": [2, 3, 8, 8], "dtype": "uint8"}
GRAY = COLORS | {"shape": [1, 1, 7, 5]}
STEP_X, STEP_Y = ({"name": name, "shape": [1, 2], "dtype": "float32"} for name in ("x", "y"))
STEP_H, STEP_C = STEP_X | {"name": "h"}, {"name": "c", "shape": [1, 3], "dtype": "float32"}
PLACES, VOCABULARY = 24, 11
TOKENS = {"name": "tokens", "shape": [1, PLACES], "dtype": "int64", "dynamic": {"1": [1, PLACES]}}
POSITIONS = {"name": "position", "shape": [PLACES], "dtype": "int64", "dynamic": {"0": [1, PLACES]}}
TEXT = {"inputs": [TOKENS, POSITIONS], "outputs": [{"name": "logits", "shape": [1, 1, VOCABULARY], "dtype": "float32"}]}
RGB = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
LOGITS = {"name": "logits", "shape": [1, 3], "dtype": "float32"}


FED: dict[str, Any] = {"inputs": [STEP_X, STEP_C], "outputs": [STEP_Y, STEP_C | {"name": "c_out"}],
                       "feeds": [{"input": "c", "output": "c_out", "first": -0.5}]}  # fmt: skip
RING = {"name": "ring", "shape": [8, 16], "dtype": "float32", "first": "zeros", "methods": ["forward"]}


def manifest(**changes: object) -> dict[str, Any]:
    """Return a complete manifest of PROGRAM, with some keys set to other values."""
    measured = {"max_abs_error": 1.25e-07, "sqnr_db": None}
    return {
        "format": 1,
        "program": "model.pte",
        "sha256": hashlib.sha256(PROGRAM).hexdigest(),
        "size_bytes": len(PROGRAM),
        "zipped_bytes": 300,
        "data": [],
        "methods": {"forward": {"inputs": [FLOAT], "outputs": [LOGITS | measured]}},
        "labels": ["null", "eins – ένα", 'zwei "2" \\ \t 🙂'],
        "backend": {"name": "xnnpack", "options": {"quantization": None}},
        "quantization": None,
        "model": {"class": "Digits", "parameters": 1234, "sparsity": 0.75},
        "verification": {"executed": "xnnpack", "tolerance": 1e-4, "samples": 0},
        "notes": [],
        "versions": {"lightning_prune": "0.0.0", "torch": "0.0.0", "executorch": "0.0.0", "python": "0.0.0"},
    } | changes


def described(values: dict[str, Any]) -> dict[str, Any]:
    """Return what a reader must find in a manifest."""
    return {
        "program": values["program"],
        "sha256": values["sha256"],
        "size_bytes": values["size_bytes"],
        "data": [entry["file"] for entry in values["data"]],
        "labels": values.get("labels", []),
        "methods": {name: [len(m["inputs"]), len(m["outputs"])] for name, m in values["methods"].items()},
        "shape": values["methods"]["forward"]["inputs"][0]["shape"],
        "dynamic": values["methods"]["forward"]["inputs"][0].get("dynamic", {}),
        "picture": values.get("picture", {"fit": "crop"}),
        "feeds": [[f["input"], f["output"], f["first"]] for f in values["methods"]["forward"].get("feeds", [])],
        "state": [each["name"] for each in values.get("state", [])],
    }


def whole_manifests() -> dict[str, dict[str, Any]]:
    """Return manifests that are to be read, by name."""
    two = {"inputs": [BYTES, FLOAT], "outputs": [LOGITS, LOGITS]}
    data = [{"file": "weights.ptd", "sha256": hashlib.sha256(b"w").hexdigest(), "size_bytes": 1}]
    return {
        "complete": manifest(),
        "without labels": {key: value for key, value in manifest().items() if key != "labels"},
        "two methods, dynamic, weights apart": manifest(methods={"forward": two, "embed": two}, data=data),
        "pictures cropped": manifest(picture={"fit": "crop", "resize": 256} | RGB),
        "pictures padded": manifest(picture={"fit": "pad", "fill": 114}),
        "memory": manifest(methods={"forward": FED, "embed": {"inputs": [FLOAT], "outputs": [LOGITS]}}, state=[RING]),
        "scalar": manifest(methods={"forward": {"inputs": [FLOAT | {"shape": []}], "outputs": [LOGITS]}}),
    }


def fed(**changes: object) -> dict[str, Any]:
    """Return a manifest of a method with a feed of which some keys are others."""
    return manifest(methods={"forward": FED | {"feeds": [FED["feeds"][0] | changes]}})


def broken_manifests() -> dict[str, str]:
    """Return texts that are to be refused, by the reason."""
    text = to_text(manifest())
    endless = manifest(methods={"forward": {"inputs": [FLOAT | {"shape": [65536, 65536, 65536]}], "outputs": []}})
    negative = manifest(methods={"forward": {"inputs": [FLOAT | {"shape": [-1, 1]}], "outputs": []}})
    backwards = manifest(methods={"forward": {"inputs": [FLOAT | {"dynamic": {"0": [8, 1]}}], "outputs": []}})
    beyond = manifest(methods={"forward": {"inputs": [FLOAT | {"dynamic": {"4": [1, 8]}}], "outputs": []}})
    return {
        "empty": "",
        "cut": text[:-3],
        "more after it": text + "{}",
        "one digit of a size": text.replace("768", "769"),
        "one letter of a label": text.replace("eins", "Eins"),
        "white space": text.replace("\n", "\r\n"),
        "no digest": text.replace('"digest"', '"digests"'),
        "digest too short": text.replace(text.split('"')[5], "ab"),
        "newer format": to_text(manifest(format=2)),
        "no object": "[1, 2]",
        "number": "1",
        "same key twice": text.replace("{", '{"format": 1,', 1),
        "trailing comma": text.replace("],\n", "],,\n", 1),
        "not a number": text.replace("1.25e-07", "NaN"),
        "control character": text.replace("Digits", "Dig\u0001its"),
        "deep": "[" * 2000,
        "size is text": to_text(manifest(size_bytes="768")),
        "size is negative": to_text(manifest(size_bytes=-1)),
        "size is a fraction": to_text(manifest(size_bytes=768.5)),
        "sha256 is no hash": to_text(manifest(sha256="7" * 63)),
        "methods are a list": to_text(manifest(methods=[])),
        "labels are numbers": to_text(manifest(labels=[1, 2])),
        "shape too large": to_text(endless),
        "shape negative": to_text(negative),
        "dynamic range backwards": to_text(backwards),
        "dynamic dimension beyond the shape": to_text(beyond),
        "pictures of another fit": to_text(manifest(picture={"fit": "twist"})),
        "pictures of size 0": to_text(manifest(picture={"fit": "crop", "resize": 0})),
        "pictures without a deviation": to_text(manifest(picture={"fit": "stretch", "mean": [0.5]})),
        "pictures with a deviation of 0": to_text(manifest(picture={"fit": "stretch", "mean": [0.5], "std": [0]})),
        "feeds no input": to_text(fed(input="q")),
        "feeds what has another shape": to_text(fed(output="y")),
        "feeds begin with text": to_text(fed(first="0")),
        "feeds are no list": to_text(manifest(methods={"forward": FED | {"feeds": {}}})),
        "border brighter than white": to_text(manifest(picture={"fit": "pad", "fill": 256})),
    }


def json_texts() -> list[dict[str, Any]]:
    """Return JSON texts, with their value or without one where they are to be refused."""
    good = ["0", "-0", "12", "-1.5e2", "2E+1", "true", " null ", '"\\u00e9\\ud83d\\ude42\\/\\n"', "[]", "{}",
            '{"":[{}]}', "[" * 60 + "]" * 60, "1e-400"]  # fmt: skip
    bad = ["", " ", "01", "+1", ".5", "1.", "1e", "NaN", "Infinity", "1e999", "99999999999999999999", "'a'", '"a',
           '"\\x"', '"\\u12g4"', '"\\u+123"', "[1,]", "[,1]", "{,}", '{"a"}', '{"a":}', '{"a":1,}', "{a:1}", "tru",
           '{"a":1 "b":2}', "nulls", "[1]]", '"\t"', "\u00a01", "\u0661", '{"a":1,"a":1}', "[" * 2000]  # fmt: skip
    return [{"text": t, "value": json.loads(t)} for t in good] + [{"text": t} for t in bad]


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


def scores(random: np.random.Generator) -> list[dict[str, Any]]:
    """Return scores with softmax and class; without these where they are to be refused."""
    cases = []
    for values in ([0.0], [1.0, 3.0, 2.0], [5.0, 5.0, 5.0], [1000.0, -1000.0], [-3e38, 3e38], [-1.5, -0.5, -0.5],
                   random.normal(0, 4, 10).round(4).tolist()):  # fmt: skip
        exact = np.asarray(values, dtype=np.float32).astype(np.float64)
        shares = np.exp(exact - exact.max())
        cases.append({"scores": values, "class": int(np.argmax(exact)), "softmax": rounded(shares / shares.sum())})
    # JSON has no word for these: "nan", "inf" stand for them.
    return [*cases, *({"scores": bad} for bad in ([], [1.0, "nan"], ["inf", 1.0], ["-inf"]))]


def answers() -> list[dict[str, Any]]:
    """Return outputs with the answer for their first image."""
    batch = LOGITS | {"shape": [2, 3]}
    return [
        {"output": [0.0, 2.0, 1.0], "spec": LOGITS, "labels": ["a", "b", "c"], "class": 1, "label": "b"},
        {"output": [0.0, 1.0, 2.0, 9.0, 9.0, 9.0], "spec": batch, "labels": ["a", "b"], "class": 2, "label": "2"},
        {"output": [0.0, 1.0], "spec": LOGITS, "labels": [], "class": None},
        {"output": [0.0, 1.0, 2.0], "spec": LOGITS | {"shape": [3]}, "labels": [], "class": None},
        {"output": [], "spec": LOGITS | {"shape": [1, 0]}, "labels": [], "class": None},
        {"output": [0.0, 1.0, 2.0], "spec": LOGITS | {"dtype": "int64"}, "labels": [], "class": None},
    ]


def readings(random: np.random.Generator) -> list[dict[str, Any]]:
    """Return outputs with the regions or boxes that they tell of; without both where they are to be refused."""
    names, base = ["cat", "dog"], {"name": "output", "dtype": "float32"}
    places = [16, 0, 32, 64], [0, -8, 64, 80]  # within a border, and cropped: top, left, height, width on 64 x 64
    cases = []
    for place in places:
        top, left, tall, wide = place
        scale = np.array([wide, tall, wide, tall])

        def shares(corners: np.ndarray, start: list[int] = [left, top] * 2, scale: np.ndarray = scale) -> list[float]:
            return rounded((corners - start) / scale)

        for classes, labels in ((1, []), (3, ["a", "b", "c"])):
            scores = random.normal(0, 1, (2, classes, 5, 4)).astype(np.float32)
            found = scores[0].argmax(0) if classes > 1 else (scores[0, 0] > 0).astype(int)
            cases.append({"output": rounded(scores), "spec": base | {"shape": [2, classes, 5, 4]}, "labels": labels,
                          "place": place, "size": [5, 4], "classes": found.ravel().tolist(),
                          "area": shares(np.array([0, 0, 64, 64]))})  # fmt: skip
        things = np.array([[20, 30, 10, 8], [21, 30, 10, 8], [20, 30, 10, 8], [50, 40, 6, 20], [10, 10, 4, 4]], float)
        sure = np.array([[0.9, 0.1], [0.7, 0.2], [0.3, 0.8], [0.1, 0.5], [0.2, 0.05]], dtype=np.float32)
        half = things[:, 2:] / 2
        corners = np.concatenate([things[:, :2] - half, things[:, :2] + half], 1)
        # the second lies on the first, the third as well but is a dog, the last is not sure enough
        kept = [(i, int(sure[i].argmax())) for i in (0, 2, 3)]
        boxes = [{"area": shares(corners[i]), "index": c, "label": names[c], "confidence": float(sure[i, c])}
                 for i, c in kept]  # fmt: skip
        whole = np.concatenate([things, sure], 1).T.astype(np.float32)
        cases.append({"output": rounded(whole), "spec": base | {"shape": [1, 6, 5]}, "labels": names, "place": place,
                      "boxes": boxes})  # fmt: skip
        ended = np.concatenate([corners, sure.max(1, keepdims=True), sure.argmax(1)[:, None]], 1)
        told = [(i, int(sure[i].argmax())) for i in (0, 2, 1, 3)]
        boxes = [{"area": shares(corners[i]), "index": c, "label": str(c), "confidence": float(sure[i, c])}
                 for i, c in told]  # fmt: skip
        cases.append({"output": rounded(ended), "spec": base | {"shape": [1, 5, 6]}, "labels": [], "place": place,
                      "boxes": boxes})  # fmt: skip
    refused = base | {"shape": [1, 5, 7]}, base | {"shape": [1]}, base | {"shape": [1, 5, 6], "dtype": "int64"}
    return cases + [{"output": [0.0] * 35, "spec": spec, "labels": [], "place": places[0]} for spec in refused] + [
        {"output": [0.0] * 29, "spec": base | {"shape": [1, 5, 6]}, "labels": [], "place": places[0]}]  # fmt: skip


def affine(weights: np.ndarray, inputs: Sequence[np.ndarray], counts: Sequence[int]) -> list[np.ndarray]:
    """Return the outputs of a program that multiplies all of its inputs, end to end, with weights."""
    outputs = np.split(weights @ np.concatenate(inputs), np.cumsum(counts)[:-1])
    return [output.astype(np.float32) for output in outputs]


def sessions() -> list[dict[str, Any]]:
    """Return programs and what a session must make of calls in a row; steps without results are to be refused.

    A program is ``weights``, or a text whose next token is 3 times the last one and its position, over and over.
    """
    spec = {
        "inputs": [STEP_X, STEP_H, STEP_C],
        "outputs": [STEP_Y, STEP_H | {"name": "h_out"}, STEP_C | {"name": "c_out"}],
        "feeds": [{"input": name, "output": f"{name}_out", "first": first} for name, first in (("h", 0.0), ("c", 2.0))],
    }
    # halves and quarters of small whole numbers, which float32 holds exactly for all of these steps
    weights = np.random.default_rng(3).integers(-2, 3, (7, 7)) / 4
    counts, first = [2, 2, 3], {"h": np.zeros(2), "c": np.full(3, 2.0)}
    made = []
    for keeps in ([], ["ring"]):
        state, events = dict(first), list[dict[str, Any]]()

        def step(
            x: Sequence[float], state: dict[str, np.ndarray] = state, events: list[dict[str, Any]] = events
        ) -> None:
            outputs = affine(weights, [np.array(x), state["h"], state["c"]], counts)
            state.update(h=outputs[1], c=outputs[2])
            events.append({"do": "step", "inputs": [list(x)], "gives": [rounded(output) for output in outputs]})

        for x in ([1.0, 2.0], [-1.0, 0.5], [0.0, 3.0]):
            step(x)
        kept = {name: rounded(value) for name, value in state.items()}
        events += [{"do": "state", "is": kept}, {"do": "step", "inputs": [[1.0]]}, {"do": "step", "inputs": []},
                   {"do": "step", "inputs": [[1.0, 2.0], [0.0, 0.0]]},
                   {"do": "reset", "first": {"h": [1.0]}, "refused": True},
                   {"do": "reset", "first": {"x": [1.0, 2.0]}, "refused": True}]  # fmt: skip
        step([2.0, -2.0])
        events.append({"do": "fail", "inputs": [[1.0, 1.0]]})
        if keeps:
            events += [{"do": "step", "inputs": [[1.0, 1.0]]}, {"do": "reset"}]
            state.update(first)
        step([1.0, 1.0])
        events.append({"do": "reset", "first": {"c": kept["c"]}})
        state.update(h=first["h"], c=np.array(kept["c"]))
        step([0.5, 0.5])
        made.append({"spec": spec, "keeps": keeps, "weights": weights.ravel().tolist(), "events": events,
                     "restarts": 2 if keeps else 1})  # fmt: skip
    made.append({"spec": TEXT, "keeps": ["keys"], "events": texts(), "restarts": 1})
    return made


def texts() -> list[dict[str, Any]]:
    """Return prompts with what follows; without that where they are to be refused."""
    written, last, events = 0, list[int](), list[dict[str, Any]]()
    for prompt, most, stop in (([4, 7, 1], 5, []), ([2], 9, [6]), ([3, 3], 99, []), ([1], 1, [])):
        given, tokens = last + prompt, list[int]()
        if written + len(given) > PLACES:
            events.append({"do": "generate", "prompt": prompt, "max": most, "stop": stop})
            continue
        while not tokens or (len(tokens) < most and tokens[-1] not in stop and written < PLACES):
            written += len(given)
            given = [(3 * given[-1] + written - 1) % VOCABULARY]
            tokens += given
        last = given
        events.append({"do": "generate", "prompt": prompt, "max": most, "stop": stop, "gives": tokens})
    too_long = {"do": "generate", "prompt": [1] * (PLACES + 1), "max": 1, "stop": []}
    empty = {"do": "generate", "prompt": [], "max": 3, "stop": []}
    again = {"do": "generate", "prompt": [4], "max": 1, "stop": [], "gives": [3 * 4 % VOCABULARY]}
    return [*events, {"do": "reset"}, too_long, empty, again]


def timings(random: np.random.Generator) -> list[dict[str, Any]]:
    """Return times with their statistics; without these where they are to be refused."""
    samples = [[3.0], [2.0, 1.0], [4.0, 1.0, 3.0, 2.0, 100.0], random.gamma(4, 0.3, 37).round(6).tolist()]
    good = []
    for sample in samples:
        low, median, high = np.percentile(sample, [25, 50, 75])
        good.append({"milliseconds": sample, "median": median, "spread": high - low, "fastest": min(sample),
                     "p90": np.percentile(sample, 90)})  # fmt: skip
    return [*good, {"milliseconds": []}, {"milliseconds": [1.0, -1.0]}]


def framings(random: np.random.Generator) -> list[dict[str, Any]]:
    """Return samples in buffers of several sizes with the frames that each completes; without these where refused."""
    cases = []
    for window, hop, sizes in ((8, 8, [20, 0, 3, 1, 16]), (7, 3, [1, 2, 3, 4, 20]), (5, 1, [12]), (4, 4, [3]),
                               (25, 10, [64, 64])):  # fmt: skip
        samples = random.integers(-(2**15), 2**15, sum(sizes))
        ends = np.cumsum(sizes)
        starts = np.arange(0, max(0, sum(sizes) - window + 1), hop)
        done = [int(((starts + window) <= end).sum()) for end in ends]
        frames = [samples[start : start + window] / 2**15 for start in starts]
        cases.append({"window": window, "hop": hop, "sizes": sizes, "samples": samples.tolist(), "done": done,
                      "frames": rounded(np.array(frames))})  # fmt: skip
    return cases + [{"window": window, "hop": hop} for window, hop in ((0, 1), (-4, 1), (4, 0), (4, 5), (4, -1))]


def probe() -> Probe:
    """Return the plan of a probe of two files, with the sha256 of PROGRAM for both."""
    image = ProbeInput((1, 4, 3, 3), "float32", False)
    inner, tokens = ProbeInput(image.shape, "float32", True), ProbeInput((2,), "int64", False)
    programs = (
        ProbeProgram("0.m0", "0.pte", "m0", (ProbeInput((1, 8), "float32", False),), "border", ((0, 8),)),
        ProbeProgram("0.m1", "0.pte", "m1", (inner,), "conv #1", ((8, 4),)),
        ProbeProgram("0.m2", "0.pte", "m2", (inner, tokens), "conv #1", ((2, 4),)),
        ProbeProgram("1.m0", "1.pte", "m0", (image,), "dense", ()),
        ProbeProgram("1.m1", "1.pte", "m1", (image,), "narrow", ()),
    )
    return Probe(
        runtime="executorch 0.0.0", backend="xnnpack", threads=1, passes=2, rounds=5,
        files=dict.fromkeys(("0.pte", "1.pte"), hashlib.sha256(PROGRAM).hexdigest()), programs=programs,
        kernels={"conv #1": (Kernel("window", 81.0, 9.0, 9.0),)}, name='Größe "2"',
        shapes={"conv.weight": (8, 4, 3, 3)},
        cells=(("conv #1", (("conv.weight", 0, 1),)),), anchors=((((8, 4),),), (((2, 4),),)),
    )  # fmt: skip


def probe_plans() -> list[dict[str, Any]]:
    """Return plans of probes, with what a phone must read of them; without it where they are to be refused."""
    plan, text = probe(), probe().to_json()
    held = {"digest": plan.digest or hashlib.sha256(text.encode()).hexdigest(), "name": plan.name, "threads": 1,
            "passes": 2, "rounds": 5, "files": plan.files,
            "programs": [{"name": p.name, "file": p.file, "method": p.method, "shapes": [[*x.shape] for x in p.inputs],
                          "dtypes": [x.dtype for x in p.inputs]} for p in plan.programs]}  # fmt: skip
    refused = {
        "empty": "", "a list": "[]", "another document": text.replace("probe_plan", "latency_table"),
        "newer": text.replace('"version": 1', '"version": 2'), "no rounds": text.replace('"rounds": 5', '"rounds": 0'),
        "no pass": text.replace('"passes": 2', '"passes": 0'), "no name": text.replace('"name": "0.m0",', ""),
        "a file above": text.replace('"1.pte"', '"../1.pte"'),
        "a file of no name": text.replace('"1.pte":', '"2.pte":'),
        "negative size": text.replace("     8\n", "     -8\n", 1), "cut": text[:-2],
    }  # fmt: skip
    if text in refused.values():
        raise ValueError("a plan that is to be refused is the one that is not")
    return [{"name": "whole", "text": text, "holds": held}, *({"name": n, "text": t} for n, t in refused.items())]


def probe_runs() -> list[dict[str, Any]]:
    """Return what programs take, which fail, the ticks of a clock; in which order they run, and what is written.

    The clock goes on by what a run takes, and by nothing else.
    """
    plan = probe()
    digest = hashlib.sha256(plan.to_json().encode()).hexdigest()
    cases = []
    for tick, costs, failing in (
        (1, {"0.m0": 1000, "0.m1": 2500, "0.m2": 30, "1.m0": 90_000, "1.m1": 7}, ()),
        (50, {"0.m0": 999, "0.m1": 1000, "0.m2": 1001, "1.m0": 333, "1.m1": 1}, ("0.m1",)),
        (40, {"0.m0": 100, "0.m1": 1, "0.m2": 1, "1.m0": 5, "1.m1": 6}, ("1.m0", "1.m1")),
    ):
        calls, failed = list[str](), list[str]()
        for _ in range(plan.passes):
            for file in plan.files:
                calls.append(f"load {file}")
                live = []
                for name in (p.name for p in plan.programs if p.file == file and p.name not in failed):
                    calls.append(name)
                    if name in failing:
                        failed.append(name)
                    else:
                        calls.append(name)
                        live.append(name)
                for number in range(plan.rounds):
                    for place in range(len(live)):
                        name = live[(number + place) % len(live)]
                        calls += [name] * (1 + int(np.ceil(20 * tick / costs[name])))
                calls.append(f"close {file}")
        times = {name: [cost] * plan.passes * plan.rounds for name, cost in costs.items() if name not in failing}
        written = {"format": "lightning_prune.probe_results", "version": 1, "plan": digest, "device": 'a "phone"\t🙂',
                   "runtime": "", "threads": 1, "clock": "thread", "tick": tick, "nanoseconds": times,
                   "failed": {name: f"{name} fails" for name in failed}}  # fmt: skip
        # the calls as a number of each in a row, which is shorter
        short = list[list[Any]]()
        for call in calls:
            if short and short[-1][0] == call:
                short[-1][1] += 1
            else:
                short.append([call, 1])
        cases.append({"tick": tick, "costs": costs, "failing": list(failing), "calls": [c for c, _ in short],
                      "counts": [n for _, n in short], "results": json.dumps(written)})  # fmt: skip
    return cases


def files() -> list[dict[str, Any]]:
    """Return file contents beside the manifest of PROGRAM: which of them are the file that it describes."""
    contents = {"same": PROGRAM, "cut": PROGRAM[:-1], "appended": PROGRAM + b"\0", "empty": b"",
                "one bit": bytes([PROGRAM[0] ^ 1]) + PROGRAM[1:]}  # fmt: skip
    return [{"name": name, "base64": base64.b64encode(data).decode(), "same": data == PROGRAM}
            for name, data in contents.items()]  # fmt: skip


def rounded(values: np.ndarray) -> list[float]:
    """Return values rounded to float32, flat."""
    return [float(value) for value in np.asarray(values, dtype=np.float32).ravel()]


def vectors() -> dict[str, Any]:
    """Return all vectors, the same ones each time."""
    random = np.random.default_rng(0)
    whole = {name: (to_text(values), values) for name, values in whole_manifests().items()}
    return {
        "manifests": [{"name": n, "text": text, "holds": described(v)} for n, (text, v) in whole.items()]
        + [{"name": name, "text": text} for name, text in broken_manifests().items()],
        "files": files(),
        "json": json_texts(),
        "images": images(random),
        "pictures": pictures(np.random.default_rng(1)),
        "unfit_inputs": unfit_inputs(),
        "drawings": drawings(),
        "scores": scores(random),
        "answers": answers(),
        "readings": readings(np.random.default_rng(2)),
        "timings": timings(random),
        "sessions": sessions(),
        "framings": framings(np.random.default_rng(3)),
        "probe_plans": probe_plans(),
        "probe_runs": probe_runs(),
    }


def to_json() -> str:
    """Return the text of the file."""
    return json.dumps(vectors(), separators=(",", ":"), ensure_ascii=True) + "\n"


if __name__ == "__main__":
    (Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET).write_text(to_json(), encoding="utf-8")
