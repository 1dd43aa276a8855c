"""JSON texts that say what they are and of which version."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from lightning_prune.documents import Form, beside, parsed, scratch, short, sweep, text_of, typed, whole

FORM = Form("lightning_prune.example", 3, "example", oldest=2)


def test_what_is_written_is_read() -> None:
    assert FORM.read(FORM.write({"a": [1, 2.5]}))["a"] == [1, 2.5]
    assert json.loads(FORM.write({})) == {"format": "lightning_prune.example", "version": 3}


@pytest.mark.parametrize("version", [2, 3])
def test_older_versions_are_read(version: int) -> None:
    assert FORM.read(json.dumps({"format": FORM.name, "version": version, "a": 1}))["a"] == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "the example is no JSON text: .*; pass what to_json"),
        ("[" * 100_000, "the example is no JSON text"),
        ("[]", '"format" is not "lightning_prune.example"'),
        ('{"format": "other"}', "the JSON text is no example"),
        ('{"format": "lightning_prune.example"}', "version None, this package reads up to 3"),
        ('{"format": "lightning_prune.example", "version": 1}', "of version 1"),
        ('{"format": "lightning_prune.example", "version": 4}', "of version 4, .*; upgrade lightning_prune"),
        ('{"format": "lightning_prune.example", "version": true}', "of version True"),
    ],
)
def test_what_is_no_such_document(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FORM.read(text)


@pytest.mark.parametrize("text", [None, b"{}", {}])
def test_what_is_no_text(text: Any) -> None:
    with pytest.raises(TypeError, match="the example must be JSON text"):
        FORM.read(text)


def test_what_is_malformed() -> None:
    with pytest.raises(ValueError, match="the example is malformed: KeyError: 'b'"), FORM.parsing():
        FORM.read(FORM.write({"a": 1}))["b"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested too deeply"),
        ("[" + "[]," * 2**21 + "0]", "2,097,153 parts, more than 2,097,152"),
        ('["' + "a" * 9 + '","' * 2**21 + '"]', "parts, more than"),
        ("1" * 9999, "digits"),
        ("{", "Expecting"),
    ],
    ids=["deep", "lists", "texts", "number", "half"],
)
def test_what_no_text_of_ours_is(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parsed(text)


def test_strict_json_has_no_infinity() -> None:
    assert parsed("[Infinity]") == [float("inf")]
    with pytest.raises(ValueError, match="Infinity is no number of JSON"):
        parsed("[Infinity]", is_strict=True)


class Kind(Enum):
    GOOD = "good"


@dataclass(frozen=True)
class Part:
    size: int
    share: float | None
    kind: Kind = Kind.GOOD


@dataclass(frozen=True)
class Whole:
    parts: Mapping[str, tuple[Part, ...]]
    places: Mapping[int, tuple[int, float]]
    is_done: bool = False


def test_a_dataclass_comes_back() -> None:
    whole_one = Whole({"a": (Part(1, 0.5), Part(2, None))}, {3: (4, 5.0)}, True)
    plain = {
        "parts": {"a": [{"size": 1, "share": 0.5, "kind": "good"}, {"size": 2, "share": None}]},
        "places": {"3": [4, 5]},
        "is_done": True,
    }
    assert typed(Whole, plain) == whole_one


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        *((int, value) for value in (True, 1.0, "1", None, [])),
        *((float, value) for value in (True, "1", None, [])),
        *((bool, value) for value in (1, "True", None)),
        *((str, value) for value in (1, None, ["a"])),
        *((tuple[int, ...], value) for value in ("ab", 3, {"a": 1}, [1, "a"], None)),
        *((tuple[int, float], value) for value in ([1], [1, 2, 3])),
        *((Mapping[int, float], value) for value in ({"a": 1}, [1], {"1": "x"})),
        *((Part, value) for value in ([], {"size": 1, "share": 1, "more": 1}, {"share": 1}, {"size": 1, "share": "a"})),
        (Part, {"size": 1, "share": 1, "kind": "bad"}),
    ],
)
def test_another_type_is_refused(kind: Any, value: Any) -> None:
    with pytest.raises(ValueError, match="the example is malformed"), FORM.parsing():
        typed(kind, value)


def test_the_field_of_another_type_is_named() -> None:
    with pytest.raises(TypeError, match="parts: size: 'large' is no int"):
        typed(Whole, {"parts": {"a": [{"size": "large", "share": 1}]}, "places": {}})


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "curve.json"
    with whole(path) as written:
        written.write_text("first")
    assert path.read_text() == "first"

    def interrupted() -> None:
        with whole(path) as written:
            written.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_where_no_file_can_be(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match=f"^{tmp_path} is a folder: name a file"), whole(tmp_path):
        pass
    refused = pytest.raises(FileNotFoundError, match=r"no folder \S+gone, in which a\.json would lie")
    with refused, whole(tmp_path / "gone" / "a.json"):
        pass
    assert not list(tmp_path.iterdir())


def test_no_planted_link_is_followed(tmp_path: Path) -> None:
    """A predictable temporary name would be: whoever can write to the folder makes it a link to a file of ours."""
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "curve.json.part").symlink_to(tmp_path / "mine")
    with whole(tmp_path / "curve.json") as written:
        assert not written.is_symlink()
        written.write_text("new")
    assert (tmp_path / "mine").read_text() == "mine"


def test_no_device_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "curve.json").symlink_to("/dev/null")
    with (
        pytest.raises(OSError, match=r"curve.json is a device, which no file replaces"),
        whole(tmp_path / "curve.json"),
    ):
        pass
    assert list(tmp_path.iterdir()) == [tmp_path / "curve.json"]


def test_long_names_stay_apart_and_are_no_longer_than_file_systems_take(tmp_path: Path) -> None:
    for name in ("像" * 80 + ".json", "é" * 120 + ".json"):
        with whole(tmp_path / name) as written:
            assert len(os.fsencode(written.name)) <= 255
            written.write_text("x")
        assert (tmp_path / name).read_text() == "x"
    one, other = ("a" * 200 + end for end in ("1.json", "2.json"))
    assert short(one) != short(other)
    assert short("m.json") == "m.json"


def test_a_folder_for_a_while_goes_and_so_does_that_of_a_dead_process(tmp_path: Path) -> None:
    with scratch(tmp_path) as folder:
        (folder / "a").touch()
        assert folder.stat().st_mode & 0o077 == 0
    assert os.listdir(tmp_path) == []
    parts = folder.name.split("-")
    (dead := tmp_path / "-".join([parts[0], "4194305", *parts[2:]])).mkdir()  # beyond the largest number of a process
    (dead / "b").touch()
    with scratch(tmp_path) as folder:
        assert os.listdir(tmp_path) == [folder.name]


def test_what_cannot_be_swept_keeps_nothing_else_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = beside(tmp_path / "m").name.split("-")
    for number in ("4194305", "4194306"):
        (tmp_path / "-".join([name[0], number, *name[2:]])).touch()
    unlink, refused = Path.unlink, list[Path]()

    def once(path: Path, missing_ok: bool = False) -> None:
        if not refused:
            refused.append(path)
            raise PermissionError("of another user")
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", once)
    sweep(tmp_path)
    assert os.listdir(tmp_path) == [refused[0].name]


def test_texts_of_files(tmp_path: Path) -> None:
    (tmp_path / "good").write_text("é", encoding="utf-8")
    assert text_of(tmp_path / "good") == "é"
    (tmp_path / "bytes").write_bytes(b"\xff")
    (tmp_path / "device").symlink_to("/dev/zero")
    with pytest.raises(ValueError, match="bytes holds no text in UTF-8"):
        text_of(tmp_path / "bytes")
    with pytest.raises(ValueError, match="device is no file"):
        text_of(tmp_path / "device")
    with pytest.raises(ValueError, match="is a folder"):
        text_of(tmp_path)
    with pytest.raises(FileNotFoundError):
        text_of(tmp_path / "none")
