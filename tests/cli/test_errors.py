"""How the commands of the shell fail: in words, with exit code 2, before they begin where that can be."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cli_cases import MODEL, TESTS, run

from lightning_prune.cli import main
from lightning_prune.cli._options import labels


class TestErrors:
    def fails(self, capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
        code, out, err = run(capsys, *arguments)
        assert (code, out) == (2, "")
        assert "Traceback" not in err
        assert len(err.splitlines()) <= 8
        return err

    def test_of_files(self, capsys: pytest.CaptureFixture[str], folder: Path):
        assert "inspect: error: no .pte file at" in self.fails(capsys, "inspect", folder / "none.pte")
        assert "summarize: error: no checkpoint at" in self.fails(capsys, "summarize", folder / "none.ckpt")
        text = self.fails(capsys, "verify", folder / "none.pte", "--model", MODEL)
        assert "no .pte file at" in text

    def test_of_options(self, capsys: pytest.CaptureFixture[str], folder: Path):
        export = ("export", "--model", MODEL, "-o", folder / "a.pte")
        assert "got 'tpu', must be xnnpack" in self.fails(capsys, *export, "--backend", "tpu")
        assert "--half is an option of vulkan, not of xnnpack" in self.fails(capsys, *export, "--half")
        assert "there is no file none.py" in self.fails(capsys, *export, "--int8", "none.py:x")
        assert "is no checkpoint, or it is damaged" in self.fails(capsys, *export, "--checkpoint", TESTS / "support.py")

    def test_usage(self, capsys: pytest.CaptureFixture[str]):
        for arguments in ([], ["nothing"], ["export"], ["inspect"]):
            with pytest.raises(SystemExit) as caught:
                main(arguments)
            assert caught.value.code == 2
        assert "usage: lightning-prune" in capsys.readouterr().err

    def test_traceback_on_request(self, folder: Path):
        with pytest.raises(FileNotFoundError):
            main(["--traceback", "inspect", str(folder / "none.pte")])


def test_what_the_users_code_raises_is_told_with_its_line(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    (folder / "odd.py").write_text(
        "class Odd(list):\n    def __iter__(self):\n        raise LookupError('no rows')\nodd = Odd()\n"
    )
    code = ["prune", "--model", MODEL, "--data", f"{folder}/odd.py:odd", "--keep-macs", "0.5", "-o", f"{folder}/o.pt"]
    assert main(code) == 2
    assert "odd.py, line 3; --traceback shows more)" in (told := capsys.readouterr().err)
    assert "error: LookupError: no rows (" in told
    with pytest.raises(LookupError):
        main(["--traceback", *code])


@pytest.mark.parametrize("reference", ["ends.py:make", "script.py:make"])
def test_code_that_ends_the_process_is_told(
    capsys: pytest.CaptureFixture[str], folder: Path, reference: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    (folder / "ends.py").write_text("def make():\n    raise SystemExit(0)\n")
    (folder / "script.py").write_text("import sys\nsys.exit(0)\n")
    code = ["export", "--model", reference, "-o", "o.pte"]
    assert main(code) == 2
    assert f"error: {reference.partition(':')[0]}" in (told := capsys.readouterr().err)
    assert "SystemExit: 0" in told
    with pytest.raises(ValueError, match="SystemExit: 0"):
        main(["--traceback", *code])


def test_data_that_ends_the_process_is_told(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    (folder / "quits.py").write_text("class Odd(list):\n    def __iter__(self):\n        exit(0)\nodd = Odd()\n")
    code = ["prune", "--model", MODEL, "--data", f"{folder}/quits.py:odd", "--keep-macs", "0.5", "-o", f"{folder}/o.pt"]
    assert main(code) == 2
    assert "error: SystemExit: 0 (" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="ends the process"):
        main(["--traceback", *code])


@pytest.mark.skipif(sys.platform == "win32", reason="needs FIFOs")
@pytest.mark.parametrize(("name", "message"), [("loop.pt", "is a link to nothing"), ("fifo.pt", "is a FIFO")])
def test_an_output_that_cannot_be_written_is_refused_before_the_model_is_loaded(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str, message: str
) -> None:
    (tmp_path / "loop.pt").symlink_to("loop.pt")
    os.mkfifo(tmp_path / "fifo.pt")
    for command in (["prune", "--keep-macs", "0.5"], ["fit-to", "--need", "macs=0.5"]):
        assert main([*command, "--model", "none.py:x", "--data", "none.py:x", "-o", str(tmp_path / name)]) == 2
        assert f"{name} {message}" in capsys.readouterr().err


def test_labels_that_are_too_long_for_a_files_name() -> None:
    names = [f"class {number}" for number in range(1000)]
    assert labels(",".join(names)) == names


def test_a_console_without_our_signs_and_a_reader_that_leaves(folder: Path) -> None:
    torch.save({"größe": torch.ones(2, 3)}, folder / "odd.pt")
    command = [sys.executable, "-m", "lightning_prune.cli", "summarize", str(folder / "odd.pt")]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    found = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (found.returncode, found.stderr) == (0, "")
    assert "gr??e" in found.stdout
    left = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert left.stdout is not None
    left.stdout.close()
    assert left.stderr is not None
    assert left.stderr.read() == ""
    assert left.wait() == 0
    left.stderr.close()
