"""Outputs of programs, and what is told of them: classes, regions, boxes, times."""

from typing import Any

import numpy as np

from vectors.manifests import LOGITS


def rounded(values: np.ndarray) -> list[float]:
    """Return values rounded to float32, flat."""
    return [float(value) for value in np.asarray(values, dtype=np.float32).ravel()]


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


def timings(random: np.random.Generator) -> list[dict[str, Any]]:
    """Return times with their statistics; without these where they are to be refused."""
    samples = [[3.0], [2.0, 1.0], [4.0, 1.0, 3.0, 2.0, 100.0], random.gamma(4, 0.3, 37).round(6).tolist()]
    good = []
    for sample in samples:
        low, median, high = np.percentile(sample, [25, 50, 75])
        good.append({"milliseconds": sample, "median": median, "spread": high - low, "fastest": min(sample),
                     "p90": np.percentile(sample, 90)})  # fmt: skip
    return [*good, {"milliseconds": []}, {"milliseconds": [1.0, -1.0]}]
