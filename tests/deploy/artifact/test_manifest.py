import copy
import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_prune.deploy import load_manifest
from lightning_prune.deploy.artifact.manifest import data_paths, methods_of, sha256_of, to_text
from lightning_prune.errors import ExportError

PROGRAM = b"a program"
WEIGHTS = b"weights"
IMAGE = {"name": "image", "shape": [1, 3, 8, 8], "dtype": "uint8", "dynamic": {"0": [1, 8]}}
LOGITS = {"name": "logits", "shape": [1, 3], "dtype": "float32", "max_abs_error": 0.0, "sqnr_db": None}
MANIFEST: dict[str, Any] = {
    "format": 1,
    "digest": "",
    "program": "m.pte",
    "sha256": hashlib.sha256(PROGRAM).hexdigest(),
    "size_bytes": len(PROGRAM),
    "zipped_bytes": 9,
    "data": [{"file": "m.ptd", "sha256": hashlib.sha256(WEIGHTS).hexdigest(), "size_bytes": len(WEIGHTS)}],
    "methods": {"forward": {"inputs": [IMAGE], "outputs": [LOGITS]}},
    "labels": ["null", "eins", "zwölf"],
    "backend": {"name": "xnnpack", "options": {}},
    "quantization": None,
    "model": {},
    "verification": {},
    "notes": [],
    "versions": {},
}


@pytest.fixture
def program(tmp_path: Path) -> Path:
    (tmp_path / "m.pte").write_bytes(PROGRAM)
    (tmp_path / "m.ptd").write_bytes(WEIGHTS)
    (tmp_path / "m.json").write_text(to_text(MANIFEST), encoding="utf-8")
    return tmp_path / "m.pte"


def test_it_comes_back(program: Path):
    manifest = load_manifest(program)
    assert manifest == MANIFEST | {"digest": manifest["digest"]}
    assert load_manifest(program.with_suffix(".json")) == manifest
    assert data_paths(manifest, program) == (program.with_suffix(".ptd"),)
    spec = methods_of(manifest)["forward"].inputs[0]
    assert (spec.name, spec.shape, spec.dtype, spec.dynamic) == ("image", (1, 3, 8, 8), torch.uint8, {0: (1, 8)})


def test_digest_is_that_of_the_text_with_zeros_in_its_place(program: Path):
    text = program.with_suffix(".json").read_text(encoding="utf-8")
    digest = json.loads(text)["digest"]
    assert hashlib.sha256(text.replace(digest, 64 * "0").encode()).hexdigest() == digest


@pytest.mark.parametrize("suffix", [".pte", ".ptd"])
@pytest.mark.parametrize("content", [b"", b"A program", b"weightS", b"a program and more", None])
def test_another_file_is_refused(program: Path, suffix: str, content: bytes | None):
    changed = program.with_suffix(suffix)
    if content is not None:
        changed.write_bytes(content)
    elif suffix == ".pte":
        pytest.skip("without its .pte a manifest is read alone")
    else:
        changed.unlink()
    with pytest.raises(ExportError, match=rf"m{suffix} is (not the file that m.json describes|missing)"):
        load_manifest(program)


def test_alone(program: Path):
    program.unlink()
    assert load_manifest(program)["labels"] == MANIFEST["labels"]


def test_of_nothing(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"no manifest at .*small.json"):
        load_manifest(tmp_path / "small.pte")


@given(st.data())
def test_any_flipped_bit_is_seen(data: st.DataObject):
    text = to_text(MANIFEST).encode()
    where, bit = data.draw(st.integers(0, len(text) - 1)), data.draw(st.integers(0, 7))
    changed = bytearray(text)
    changed[where] ^= 1 << bit
    refused(bytes(changed))


@given(st.integers(0, 1500), st.binary(max_size=4))
def test_cut_off_or_longer_is_seen(length: int, more: bytes):
    text = to_text(MANIFEST).encode()
    if text[:length] + more != text:
        refused(text[:length] + more)


def refused(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "m.json")
        path.write_bytes(content)
        with pytest.raises(ExportError, match=r"m\.json"):
            load_manifest(path)


def without(*keys: str) -> Callable[[dict[str, Any]], None]:
    def change(manifest: dict[str, Any]) -> None:
        for key in keys[:-1]:
            manifest = manifest[key] if isinstance(manifest, dict) else manifest[int(key)]
        del manifest[keys[-1]]

    return change


def put(value: Any, *keys: str | int) -> Callable[[dict[str, Any]], None]:
    def change(manifest: Any) -> None:
        for key in keys[:-1]:
            manifest = manifest[key]
        manifest[keys[-1]] = value

    return change


FORWARD = ("methods", "forward")
KEPT = {"name": "keys", "shape": [1, 3], "dtype": "float32", "first": "zeros", "methods": ["forward"]}
FED = {"name": "next", "shape": [1, 3, 8, 8], "dtype": "uint8"}
FEED = {"input": "image", "output": "next", "first": 255.0}
TEXT = {"get_max_context_len": 8, "get_vocab_size": 5, "get_eos_ids": [2]}
DECODER = {
    "inputs": [{"name": "tokens", "shape": [1, 8], "dtype": "int64"}, {"name": "at", "shape": [8], "dtype": "int64"}],
    "outputs": [{"name": "logits", "shape": [1, 1, 5], "dtype": "float32"}],
}
MALFORMED = [
    *(without(key) for key in MANIFEST if key not in ("format", "digest", "labels")),
    *(put(value, key) for key in MANIFEST if key not in ("format", "digest") for value in (True, 3.5)),
    *(put(value, *FORWARD, "inputs") for value in (None, {}, 3, "text", [3], [[]], [{}])),
    *(put(value, *FORWARD, "inputs", 0, "shape") for value in (None, 3, ["1"], [-1], [2**70], [True], [1.0], {"a": 1})),
    *(put(value, *FORWARD, "inputs", 0, "dtype") for value in (None, "float31", [], 3)),
    *(put(value, *FORWARD, "inputs", 0, "name") for value in (None, [], 3)),
    *(
        put(value, *FORWARD, "inputs", 0, "dynamic")
        for value in ([], 3, None, {"a": [1, 2]}, {"4": [1, 2]}, {"0": [2, 1]}, {"0": [1]}, {"0": 1}, {"-1": [1, 2]})
    ),
    put([2**33, 3, 8, 8], *FORWARD, "inputs", 0, "shape"),
    *(put(value, "data", 0, "file") for value in ("../m.ptd", "/etc/passwd", "", ".", "..", None, 3, "a\0b")),
    *(put(value, "data", 0) for value in (None, 3, "m.ptd", [], {})),
    *(put(value, "methods") for value in ({}, {"forward": None}, {"forward": []})),
    put([1], "labels"),
    put([None], "notes"),
]


def remembering(**changes: Any) -> dict[str, Any]:
    """Return a manifest of a decoder and of a method that is fed; changes are of state, feeds and generation."""
    held = {"state": [KEPT], "generation": TEXT, "feeds": [FEED]} | changes
    step = {"inputs": [IMAGE], "outputs": [FED], "feeds": held.pop("feeds")}
    return MANIFEST | {"methods": {"forward": DECODER, "step": step}} | held


def test_what_a_program_remembers_comes_back(program: Path):
    program.with_suffix(".json").write_text(to_text(remembering()), encoding="utf-8")
    manifest = load_manifest(program)
    assert (manifest["state"], manifest["generation"]) == ([KEPT], TEXT)
    assert [feed.to_json() for feed in methods_of(manifest)["step"].feeds] == [FEED]


@pytest.mark.parametrize(
    "changes",
    [
        *({"state": value} for value in (None, 3, "x", {}, [3], [{}], [KEPT, None])),
        *({"state": [KEPT | {name: value}]} for name in KEPT for value in (None, 3, {}, [[]], [-1], ["x"], [2**70])),
        *({"generation": value} for value in (None, 3, "x", [], {})),
        *({"generation": TEXT | {name: value}} for name in TEXT for value in (None, "x", 2**62, 2.0, [], [-1], True)),
        {"generation": TEXT | {"get_bos_id": "x"}},
        *({"feeds": value} for value in (None, 3, {}, [3], [[]], [{}], [FEED, FEED], [FEED | {"more": 1}])),
        *({"feeds": [FEED | {"first": value}]} for value in (None, "0", True, -1, 256, 0.5, 1e300, 10**400)),
        *({"feeds": [FEED | {name: value}]} for name in ("input", "output") for value in (None, [], 0, "other")),
    ],
)
def test_odd_values_of_what_a_program_remembers_are_refused(program: Path, changes: dict[str, Any]):
    program.with_suffix(".json").write_text(to_text(remembering(**changes)), encoding="utf-8")
    with pytest.raises(ExportError, match=r"m.json is not a complete manifest of lightning_prune \("):
        load_manifest(program)


@pytest.mark.parametrize("change", MALFORMED)
def test_malformed_in_spite_of_a_right_digest(program: Path, change: Callable[[dict[str, Any]], None]):
    manifest = copy.deepcopy(MANIFEST)
    change(manifest)
    program.with_suffix(".json").write_text(to_text(manifest), encoding="utf-8")
    with pytest.raises(ExportError, match=r"m.json is not a complete manifest of lightning_prune \("):
        load_manifest(program)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"format": "1"}', '{"format": true}', '{"format": 0}', '"format"', "\x00", "NaN", 20_000 * "["],
)
def test_of_something_else(tmp_path: Path, text: str):
    (tmp_path / "small.json").write_text(text)
    with pytest.raises(ExportError, match=r"small.json is not a manifest of lightning_prune"):
        load_manifest(tmp_path / "small.json")


def test_of_a_newer_format(tmp_path: Path):
    (tmp_path / "small.json").write_text(to_text(MANIFEST | {"format": 2}))
    with pytest.raises(ExportError, match=r"is of manifest format 2, .*reads up to 1: pip install --upgrade"):
        load_manifest(tmp_path / "small.json")


def test_of_gigabytes(tmp_path: Path):
    with (tmp_path / "small.json").open("wb") as file:
        os.truncate(file.fileno(), 2**33)
    with pytest.raises(ExportError, match=r"small.json has 8,589,934,592 bytes, and no manifest"):
        load_manifest(tmp_path / "small.json")


def test_hash_of_a_file_of_several_pieces(tmp_path: Path):
    data = os.urandom(2**20 + 3)
    (tmp_path / "m").write_bytes(data)
    assert sha256_of(tmp_path / "m") == hashlib.sha256(data).hexdigest()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's own, of what it is given to read
@pytest.mark.parametrize("kind", ["plans", "manifests", "values", "bytes", "pickles", "probes", "results", "tables"])
def test_mutated_files_raise_no_bare_error(kind: str, tmp_path: Path):
    """28,858 plans, manifests, checkpoints, probes, their results, latency tables: with a value or bytes changed."""
    from benchmarks.mutated import COUNTS, fuzz

    read, refused = fuzz(kind, COUNTS[kind], tmp_path)
    assert read + refused == COUNTS[kind]
    assert min(read, refused) > 0
