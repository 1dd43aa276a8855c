"""Arguments of other types and out of their range: named, with what was given and what is allowed."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from deploy_models import EXAMPLE, LABELS, Small, exported, images, small
from torch import nn

from lightning_prune.deploy import (
    XNNPACK,
    Artifact,
    Bounds,
    CoreML,
    RuntimeModel,
    benchmark,
    export,
    export_android,
    export_ios,
    inspect,
    latency_table,
    load_manifest,
    thread_count,
    verify,
)
from lightning_prune.deploy.program.arguments import checked_labels

pytest.importorskip("executorch", reason="needs the extra 'mobile' (executorch)")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return exported(tmp_path_factory.mktemp("arguments"))


def refuses(text: str, call: Callable[..., Any], *arguments: object, **named: object) -> None:
    with pytest.raises((TypeError, ValueError), match=text):
        call(*arguments, **named)


NUMBERS = [("x", "must be a number"), (True, "must be a number"), (-1.0, "above 0, got -1"), (0, "above 0, got 0")]
NUMBERS += [(float("nan"), "got nan"), (float("inf"), "got inf"), ([1], r"above 0, got \[1\] \(list\)")]


class TestExport:
    @pytest.fixture(autouse=True)
    def _nothing_heavy(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
        monkeypatch.setattr(torch.export, "export", None)
        yield
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("path", [None, 5, b"m.pte", ["m.pte"]])
    def test_path(self, path: object):
        refuses(r"path: got .*, must be a path, as in path='model.pte'", export, small(), path)

    @pytest.mark.parametrize("path", ["", "m", ".", "m.pt"])
    def test_suffix(self, path: str):
        refuses("must end in .pte", export, small(), path, example_inputs=EXAMPLE)

    @pytest.mark.parametrize(
        ("model", "text"), [(None, "got None"), (Small, r"got the class Small.*Small\(\)"), (3, "got 3")]
    )
    def test_model(self, tmp_path: Path, model: object, text: str):
        refuses(f"model: {text}", export, model, tmp_path / "m.pte", example_inputs=EXAMPLE)

    @pytest.mark.parametrize(
        ("named", "text"),
        [
            ({"example_inputs": [1, 2]}, r"example_inputs\[0\] is a int"),
            ({"example_inputs": 5}, "example_inputs: got a int, must be a tensor, a tuple of positional"),
            ({"example_inputs": np.zeros((4, 1, 8, 8))}, "example_inputs: got a ndarray"),
            ({"verify_on": 5}, r"verify_on: got 5 \(int\), must be a DataLoader"),
            ({"verify_on": "abc"}, "verify_on: got 'abc'"),
            ({"verify_on": EXAMPLE}, r"verify_on: got one tensor, must be batches"),
            ({"labels": 3}, "labels: got 3"),
            ({"labels": {"a", "b", "c"}}, "labels: got .*set.*in the order of them"),
            ({"labels": ["a", "b", 3]}, r"labels: got 3 \(int\) as number 2"),
            ({"labels": np.array([1, 2, 3])}, "labels: got .* as number 0, every one must be a string"),
            ({"external_weights": "yes"}, "external_weights must be True or False, got 'yes'"),
            ({"methods": [1]}, "methods: got a list, must be a dict"),
            ({"backend": "xnnpack"}, r"backend: got 'xnnpack', must be a value such as XNNPACK\(\)"),
        ],
    )
    def test_others(self, tmp_path: Path, named: dict[str, Any], text: str):
        refuses(text, export, small(), tmp_path / "m.pte", **{"example_inputs": EXAMPLE, **named})

    @pytest.mark.parametrize(("tolerance", "text"), NUMBERS)
    def test_tolerance(self, tmp_path: Path, tolerance: object, text: str):
        refuses(f"^tolerance must .*{text}|^tolerance {text}", export, small(), tmp_path / "m.pte",
                example_inputs=EXAMPLE, tolerance=tolerance)  # fmt: skip

    def test_folders(self, tmp_path: Path):
        refuses("folder: got None, must be a path", export_android, small(), None, example_inputs=EXAMPLE)
        refuses("folder: got 3", export_ios, small(), 3, example_inputs=EXAMPLE)
        refuses("backend: got 5", export_android, small(), tmp_path / "a", backend=5)
        refuses("fallback: got 5", export_ios, small(), tmp_path / "a", fallback=5)
        refuses("backend: got <class", export_ios, small(), tmp_path / "a", backend=CoreML)


class TestFiles:
    @pytest.mark.parametrize("call", [inspect, load_manifest, RuntimeModel])
    def test_path(self, call: Callable[..., Any]):
        for path in (None, 5):
            refuses(rf"path: got {path}.*, must be a path", call, path)

    @pytest.mark.parametrize(("timeout", "text"), NUMBERS)
    def test_timeout(self, artifact: Artifact, timeout: object, text: str):
        for call in (
            lambda: inspect(artifact.path, timeout=timeout),  # pyright: ignore[reportArgumentType]
            lambda: benchmark(artifact.path, timeout=timeout),  # pyright: ignore[reportArgumentType]
            lambda: verify(artifact.path, small(), timeout=timeout),  # pyright: ignore[reportArgumentType]
        ):
            refuses(text, call)
        refuses("timeout must be at most 1,000,000 seconds, got 10000000", inspect, artifact.path, timeout=10_000_000)

    @pytest.mark.parametrize(
        ("named", "text"),
        [
            ({"rounds": 2.5}, r"rounds must be an int, got 2.5 \(float\)"),
            ({"rounds": True}, "rounds must be an int, got True"),
            ({"rounds": 0}, "rounds must be at least 1, got 0"),
            ({"threads": 1.5}, "threads must be an int, got 1.5"),
            ({"threads": 0}, "threads must be at least 1, got 0"),
            ({"profile": "yes"}, "profile must be True or False, got 'yes'"),
            ({"method": 3}, "method: got 3 .*must be a string"),
            ({"example_inputs": 3}, "example_inputs: got a int"),
        ],
    )
    def test_benchmark(self, artifact: Artifact, named: dict[str, Any], text: str):
        refuses(text, benchmark, artifact.path, **named)

    def test_programs(self, artifact: Artifact):
        refuses("programs: got 5, must be paths", benchmark, 5)
        refuses("programs: got None, must be paths", benchmark, None)
        refuses("programs: got 3", benchmark, [artifact.path, 3])
        refuses(r"programs\['a'\]: got None", benchmark, {"a": None})

    def test_verify(self, artifact: Artifact):
        refuses("model: got None", verify, artifact.path, None)
        refuses("path: got None", verify, None, small())
        refuses("verify_on: got 5", verify, artifact.path, small(), verify_on=5)
        refuses("example_inputs: got a int", verify, artifact.path, small(), 5)
        refuses(r"example_inputs\[0\] is a int", verify, artifact.path, small(), [1, 2])
        refuses("methods: got a int", verify, artifact.path, small(), methods=3)
        refuses("min_sqnr must be a finite number, got 'x'", verify, artifact.path, small(), min_sqnr="x")

    def test_threads(self):
        refuses("threads must be an int, got 1.5", lambda: thread_count(1.5).__enter__())  # pyright: ignore[reportArgumentType]

    @pytest.mark.parametrize(
        ("named", "text"),
        [
            ({"rounds": 2.5}, "rounds must be an int, got 2.5"),
            ({"rounds": 2}, "rounds must be at least 10, got 2"),
            ({"threads": "x"}, "threads must be an int, got 'x'"),
            ({"points": 2.0}, "points must be an int, got 2.0"),
            ({"backend": XNNPACK}, "backend: got <class"),
            ({"example_inputs": 5}, "example_inputs: got a int"),
            ({"granularity": "heads"}, "granularity: got 'heads', must be a value such as Channel()"),
            ({"progress": 1}, "progress must be True or False, got 1"),
        ],
    )
    def test_latency_table(self, named: dict[str, Any], text: str):
        refuses(text, latency_table, small(), **{"example_inputs": EXAMPLE, **named})


class TestLabels:
    @pytest.mark.parametrize("kind", [list, tuple, np.array, lambda names: dict.fromkeys(names).keys()])
    def test_sequences_of_strings(self, kind: Callable[..., Any]):
        if kind(LABELS) is not None and isinstance(kind(LABELS), type({}.keys())):
            refuses("in the order of them", checked_labels, kind(LABELS))
            return
        found = checked_labels(kind(LABELS))
        assert found == LABELS
        assert found is not None
        assert all(type(label) is str for label in found)

    def test_an_array_in_an_export(self, tmp_path: Path):
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
        path = export(model, tmp_path / "m.pte", example_inputs=images(1), labels=np.array(LABELS)).path  # pyright: ignore
        assert RuntimeModel(path).constants["labels"] == LABELS
        assert load_manifest(path)["labels"] == list(LABELS)


def test_what_is_right_passes():
    assert copy.deepcopy(Bounds(1, -20)) == Bounds(1, -20)
