"""The commands of the shell, run in this process; what they print."""

import inspect
import json
import subprocess
import sys
from collections.abc import Iterable
from importlib.machinery import PathFinder
from pathlib import Path

import pytest
import torch
from cli_cases import MODEL, TAGGER, run
from support import Net

import lightning_prune
from lightning_prune import OneShot, prune
from lightning_prune.cli import main
from lightning_prune.cli._models import example, loaded_model
from lightning_prune.cli.references import load, made
from lightning_prune.deploy import Method, export
from lightning_prune.errors import CheckpointError


class TestReferences:
    def test_of_files_and_modules(self, folder: Path):
        assert load(f"{folder / 'data.py'}:number") == 3
        assert load("lightning_prune.schedules:OneShot") is OneShot
        assert load("lightning_prune:OneShot.__name__") == "OneShot"
        assert load(f"{folder / 'data.py'}:batches") is load(f"{folder / 'data.py'}:batches")

    def test_made(self, folder: Path):
        assert len(made(f"{folder / 'data.py'}:calibration", list)) == len(made(f"{folder / 'data.py'}:batches", list))
        with pytest.raises(ValueError, match=r"number gives 3 \(int\): a list is needed"):
            made(f"{folder / 'data.py'}:number", list)
        with pytest.raises(ValueError, match=r"failing\(\) fails: KeyError: 'nothing'"):
            made(f"{folder / 'data.py'}:failing", list)
        with pytest.raises(ValueError, match=r"gives 3 \(int\): a loader or another iterable of batches is needed"):
            made(f"{folder / 'data.py'}:number", Iterable)

    @pytest.mark.parametrize(
        ("reference", "text"),
        [
            ("Digits", "must be module:attribute or file.py:attribute"),
            (":x", "must be module:attribute"),
            ("nowhere.at_all:x", "nowhere.at_all cannot be imported: No module named 'nowhere'"),
            ("none.py:x", "there is no file none.py"),
            ("broken.py:x", r"broken.py cannot be imported: NameError: .*broken.py, line 2"),
            ("data.py:other", "data.py has no 'other'; it has: .*calibration"),
            ("data.py:calibraton", "has no 'calibraton'; did you mean 'calibration'[?] It has: (?!.*torch).*number"),
        ],
    )
    def test_bad_ones(self, folder: Path, monkeypatch: pytest.MonkeyPatch, reference: str, text: str):
        monkeypatch.chdir(folder)
        with pytest.raises(ValueError, match=text):
            load(reference)


class TestModels:
    def test_a_compact_checkpoint_of_a_class_without_the_mixin(self, folder: Path):
        model = loaded_model(MODEL, folder / "last.ckpt")
        assert type(model).__name__ == "Net"
        assert not model.training
        assert model.get_parameter("conv1.weight").shape[0] < 8

    def test_a_function_that_gives_a_plain_module(self, tmp_path: Path):
        (tmp_path / "plain.py").write_text("from torch import nn\ndef net():\n    return nn.Linear(3, 2)\n")
        weights = {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}
        torch.save(weights, tmp_path / "a.pt")
        model = loaded_model(f"{tmp_path / 'plain.py'}:net", tmp_path / "a.pt")
        assert torch.equal(model.get_parameter("weight"), weights["weight"])

    def test_example(self, folder: Path):
        shaped = example("2,1,6,6")
        assert isinstance(shaped, torch.Tensor)
        assert shaped.shape == (2, 1, 6, 6)
        assert example(None) is None
        with pytest.raises(ValueError, match="--example: got '2,x', must be a shape such as"):
            example("2,x")


def test_the_shell_looks_at_as_many_samples_as_the_function(capsys: pytest.CaptureFixture[str]) -> None:
    most = inspect.signature(prune).parameters["samples"].default
    with pytest.raises(SystemExit):
        main(["prune", "--help"])
    assert f"at most ({most})" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("command", ["fit-to", "prune", "export", "inspect", "benchmark", "verify", "summarize"])
def test_help_has_an_example(capsys: pytest.CaptureFixture[str], command: str):
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert f"example:\n  lightning-prune {command}" in capsys.readouterr().out


class TestPrune:
    def test_then_export(self, capsys: pytest.CaptureFixture[str], folder: Path):
        small, data = folder / "small.pt", folder / "data.py"
        code, out, err = run(
            capsys, "prune", "--model", MODEL, "--data", f"{data}:many", "--keep-macs", 0.5, "-o", small,
            "--metric", f"{data}:share_right", "--criterion", "fisher", "--loss", f"{data}:loss",
            "--allocation", "uniform",
        )  # fmt: skip
        assert (code, err) == (0, "")
        assert "share_right" in out
        assert f"lightning-prune export --model {MODEL} --checkpoint {small} -o {small.with_suffix('.pte')}" in out
        model = loaded_model(MODEL, small)
        assert isinstance(model, Net)
        assert model.conv1.out_channels < Net().conv1.out_channels
        assert lightning_prune.load(Net, small).conv1.out_channels == model.conv1.out_channels
        command = out[out.index("lightning-prune export") :].split()[1:]
        code, out, err = run(capsys, *command)
        assert (code, err) == (0, "")
        assert small.with_suffix(".pte").is_file()
        assert not list(folder.glob(".small*"))

    def test_the_next_command_runs_for_a_model_without_an_example(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ):
        (tmp_path / "mlp.py").write_text(
            "import torch\nfrom torch import nn\n"
            "def make():\n    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))\n"
            "def data():\n    return [torch.rand(32, 6)]\n"
        )
        code, out, _ = run(
            capsys, "prune", "--model", f"{tmp_path / 'mlp.py'}:make", "--data", f"{tmp_path / 'mlp.py'}:data",
            "--keep-params", 0.5, "-o", tmp_path / "mlp.pt",
        )  # fmt: skip
        assert code == 0
        code, out, err = run(capsys, *out[out.index("lightning-prune export") :].split()[1:])
        assert (code, err) == (0, "")
        manifest = json.loads((tmp_path / "mlp.json").read_text())
        assert manifest["methods"]["forward"]["inputs"][0]["shape"] == [1, 6]

    def test_a_full_disk_is_said(
        self, capsys: pytest.CaptureFixture[str], folder: Path, monkeypatch: pytest.MonkeyPatch
    ):
        def failing(*_: object) -> None:
            raise RuntimeError("PytorchStreamWriter failed writing file")

        monkeypatch.setattr(torch, "save", failing)
        options = ("--data", f"{folder / 'data.py'}:many", "--keep-macs", 0.5, "-o", folder / "full.pt")
        code, _, err = run(capsys, "prune", "--model", MODEL, *options)
        assert code == 2
        assert "full.pt cannot be written" in err
        assert not list(folder.glob("*full.pt*"))

    def test_single_weights_without_repair(self, capsys: pytest.CaptureFixture[str], folder: Path):
        sparse = folder / "sparse.pt"
        options = (
            "--keep-weights",
            0.25,
            "--no-repair",
            "--criterion",
            "reconstruction",
            "--metric",
            f"{folder / 'data.py'}:accuracy",
            "-o",
            sparse,
        )
        code, out, _ = run(capsys, "prune", "--model", MODEL, "--data", f"{folder / 'data.py'}:many", *options)
        assert code == 0
        assert "MulticlassAccuracy" in out
        assert "repaired" not in out
        weight = torch.load(sparse, weights_only=True)["state_dict"]["conv2.weight"]
        assert float((weight == 0).float().mean()) > 0.5

    @pytest.mark.parametrize(
        ("options", "text"),
        [
            (("--keep-macs", 1.5), "--keep-macs: got 1.5, must be a share between 0 and 1"),
            (("--keep-macs", 0.5, "--data", "{}:number"), "a loader or another iterable of batches is needed"),
            (("--keep-macs", 0.5, "--samples", 4), "LeastSquares.samples"),
            (("--keep-macs", 0.5, "--metric", "{}:loss_"), "has no 'loss_'"),
            (
                ("--keep-macs", 0.5, "--loss", "{}:loss", "--criterion", "magnitude"),
                "magnitude looks at no loss: choose",
            ),
            (
                ("--keep-macs", 0.5, "--metric", "{}:share_right", "--lower-is-better"),
                "a metric is: add --max-drop 0.01",
            ),
            (("--keep-macs", 0.5, "-o", "no/where/small.pt"), "/no/where; create it: mkdir -p no/where"),
        ],
    )
    def test_what_is_refused(
        self, capsys: pytest.CaptureFixture[str], folder: Path, options: tuple[object, ...], text: str
    ):
        data = str(folder / "data.py")
        given = [str(option).format(data) for option in options]
        start = ("prune", "--model", MODEL, "--data", f"{data}:many", "-o", folder / "refused.pt")
        code, _, err = run(capsys, *start, *given)
        assert code == 2
        assert text in err
        assert not (folder / "refused.pt").exists()


def test_summarize(capsys: pytest.CaptureFixture[str], folder: Path):
    code, out, _ = run(capsys, "summarize", folder / "last.ckpt")
    assert code == 0
    assert "pruning       finished" in out
    assert "conv2.weight" in out


def test_from_a_shell_without_the_models_code(folder: Path):
    command = [sys.executable, "-m", "lightning_prune.cli", "summarize", "last.ckpt"]
    found = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout.startswith("last.ckpt\n")


def test_trusted_objects_of_the_working_folder(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    (tmp_path / "own_net.py").write_text("class Settings:\n    pass\n")
    save = "import torch, own_net; torch.save({'a': torch.ones(2), 'own': own_net.Settings()}, 'm.pt')"
    subprocess.run([sys.executable, "-c", save], cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])  # as the console script has it
    code, _, err = run(capsys, "summarize", "m.pt", "--trust")
    assert (code, err) == (0, "")


@pytest.fixture(scope="module")
def exported(folder: Path) -> Path:
    pytest.importorskip("executorch", reason="needs the extra 'mobile' (executorch)")
    common = ["export", "--checkpoint", str(folder / "last.ckpt"), "--model", MODEL]
    data = str(folder / "data.py")
    compared = ["--verify-on", f"{data}:batches", "--metric", f"{data}:accuracy", "--labels", "a,b,c,d"]
    assert main([*common, *compared, "-o", str(folder / "model.pte")]) == 0
    assert main([*common, "--int8", f"{data}:calibration", "-o", str(folder / "int8.pte")]) == 0
    return folder / "model.pte"


@pytest.mark.slow
class TestFiles:
    def test_inspect(self, capsys: pytest.CaptureFixture[str], exported: Path):
        code, out, _ = run(capsys, "inspect", exported, exported.with_name("int8.pte"))
        assert code == 0
        assert out.count("verified (") == 2

    def test_benchmark(self, capsys: pytest.CaptureFixture[str], exported: Path):
        code, out, _ = run(capsys, "benchmark", exported, exported.with_name("int8.pte"), "--rounds", 3, "--profile")
        assert code == 0
        assert "1.00×" in out
        assert "XnnpackBackend" in out

    def test_verify(self, capsys: pytest.CaptureFixture[str], exported: Path, folder: Path):
        data = folder / "data.py"
        model = ("--checkpoint", folder / "last.ckpt", "--model", MODEL)
        code, out, _ = run(
            capsys, "verify", exported, *model, "--verify-on", f"{data}:batches", "--metric", f"{data}:accuracy"
        )
        assert code == 0
        assert "6 samples, 0 changed predictions" in out
        code, _, err = run(capsys, "verify", exported, "--model", MODEL)
        assert code == 2
        assert "largest absolute difference from the eager model is" in err
        assert "written" not in err

    def test_verify_tells_every_method(self, capsys: pytest.CaptureFixture[str], folder: Path):
        (folder / "tagger.py").write_text(TAGGER)
        export(load(f"{folder / 'tagger.py'}:tagger"), folder / "t.pte", methods={"embed": Method("body")})
        code, out, _ = run(capsys, "verify", folder / "t.pte", "--model", f"{folder / 'tagger.py'}:tagger")
        assert code == 0
        assert [line.split("  ")[1] for line in out.splitlines()[1:]] == ["output output", "output output of embed"]


class TestTrust:
    @pytest.mark.parametrize("key", ["hyper_parameters", "hparams", "module_arguments"])
    def test_code_that_plain_values_name_is_not_run(self, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        (tmp_path / "planted.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\ndef make(*all): ...\n")
        monkeypatch.syspath_prepend(tmp_path)
        held = {"state_dict": Net().state_dict(), "pytorch-lightning_version": "2.6.0"}
        torch.save(held | {key: {"_instantiator": "planted.make"}}, tmp_path / "last.ckpt")
        with pytest.raises(CheckpointError, match=r"last.ckpt names code .*_instantiator: 'planted.make'.*--trust"):
            loaded_model(MODEL, tmp_path / "last.ckpt")
        with pytest.raises(CheckpointError, match=r"names code .*weights_only=False"):
            lightning_prune.load(Net, tmp_path / "last.ckpt")
        assert not (tmp_path / "ran").exists()
        assert "planted" not in sys.modules

    def test_a_file_hides_no_standard_module(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(sys, "path", list(sys.path))
        (tmp_path / "copy.py").write_text("value = 3")
        (tmp_path / "this.py").write_text("value = 4")
        before = sys.modules["copy"]
        assert load(f"{tmp_path / 'copy.py'}:value") == 3
        assert load(f"{tmp_path / 'copy.py'}:value.real") == 3
        assert load(f"{tmp_path / 'this.py'}:value") == 4
        assert sys.modules["copy"] is before
        assert "this" not in sys.modules
        found = PathFinder.find_spec("this")
        assert found is not None
        assert found.origin != str(tmp_path / "this.py")

    def test_two_files_of_one_name(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(sys, "path", list(sys.path))
        for folder in ("a", "b"):
            (tmp_path / folder).mkdir()
            (tmp_path / folder / "twice_named.py").write_text(f"value = {folder!r}")
        assert [load(f"{tmp_path / folder / 'twice_named.py'}:value") for folder in ("a", "b", "a")] == ["a", "b", "a"]
        del sys.modules["twice_named"]
