"""JSON texts that say what they are and of which version."""

import json
from pathlib import Path
from typing import Any

import pytest

from lightning_prune.documents import Form, whole

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
