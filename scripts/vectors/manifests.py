"""Manifests to read and to refuse, with the program and the inputs that they tell of."""

import base64
import hashlib
import json
from typing import Any

from lightning_prune.deploy.artifact.manifest import to_text

PROGRAM = bytes(range(256)) * 3
FLOAT = {"name": "x", "shape": [1, 1, 8, 8], "dtype": "float32"}
BYTES = {"name": "image", "shape": [1, 3, 5, 4], "dtype": "uint8", "dynamic": {"0": [1, 8]}}
STEP_X, STEP_Y = ({"name": name, "shape": [1, 2], "dtype": "float32"} for name in ("x", "y"))
STEP_H, STEP_C = STEP_X | {"name": "h"}, {"name": "c", "shape": [1, 3], "dtype": "float32"}
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


def files() -> list[dict[str, Any]]:
    """Return file contents beside the manifest of PROGRAM: which of them are the file that it describes."""
    contents = {"same": PROGRAM, "cut": PROGRAM[:-1], "appended": PROGRAM + b"\0", "empty": b"",
                "one bit": bytes([PROGRAM[0] ^ 1]) + PROGRAM[1:]}  # fmt: skip
    return [{"name": name, "base64": base64.b64encode(data).decode(), "same": data == PROGRAM}
            for name, data in contents.items()]  # fmt: skip
