"""From a trained model to the program of an app in one command."""

import json
from pathlib import Path

import pytest
import torch
from cli_cases import fit_to

from lightning_prune.cli import main
from lightning_prune.cli._models import loaded_model


@pytest.mark.slow
class TestFitTo:
    def test_a_need(self, capsys: pytest.CaptureFixture[str], net: Path, tmp_path: Path) -> None:
        pytest.importorskip("executorch", reason="needs the extra 'mobile' (executorch)")
        code, out, err = fit_to(capsys, net, "--need", "macs=0.3", "-o", tmp_path / "model")
        assert code == 0
        assert err.splitlines() == [
            "fit-to: pruning Sequential towards macs=0.3",
            "fit-to: exporting to xnnpack and running the file, for android",
        ]
        manifest = json.loads((tmp_path / "model" / "assets" / "model.json").read_text())
        assert manifest["model"]["macs"] <= 0.3 * 32 * (8 + 4)
        assert (tmp_path / "model" / "build.gradle.kts").is_file()
        assert f"checkpoint  {tmp_path / 'model.pt'}" in out
        small = loaded_model(f"{net}:make", tmp_path / "model.pt")
        assert sum(p.numel() for p in small.parameters()) == manifest["model"]["parameters"]

    def test_a_drop_of_the_file_itself(self, capsys: pytest.CaptureFixture[str], net: Path, tmp_path: Path) -> None:
        pytest.importorskip("executorch", reason="needs the extra 'mobile' (executorch)")
        code, out, err = fit_to(
            capsys, net, "--max-drop", 0.05, "--metric", "net.py:accuracy", "--int8", "-o", tmp_path / "small.pte",
            "--report", tmp_path / "page.html", "--app", "ios",
        )  # fmt: skip
        assert code == 2
        assert "leave .pte out" in err
        code, out, err = fit_to(
            capsys, net, "--max-drop", 0.05, "--metric", "net.py:accuracy", "--int8", "-o", tmp_path / "small.pte",
            "--report", tmp_path / "page.html",
        )  # fmt: skip
        assert code == 0, err
        assert "exporting, to see what the file costs" in err
        manifest = json.loads((tmp_path / "small.json").read_text())
        assert manifest["quantization"]["kind"] == "Int8"
        assert manifest["verification"]["metrics"]["executorch"] >= 1 - 0.05
        # three quarters of the units repeat the others
        assert manifest["model"]["parameters"] < 0.5 * (32 * 8 + 32 + 32 * 4 + 4)
        assert out.splitlines()[0].split() == ["MACs", "left", "parameters", "MACs", "MulticlassAccuracy"]
        assert out.count("chosen\n") == 1
        assert "What was tried" in (tmp_path / "page.html").read_text()

    def test_a_function_does_not_measure_the_file_and_that_is_said(
        self, capsys: pytest.CaptureFixture[str], net: Path, tmp_path: Path
    ) -> None:
        pytest.importorskip("executorch", reason="needs the extra 'mobile' (executorch)")
        by = ("--max-drop", 0.01, "--metric", "net.py:share_wrong", "--lower-is-better")
        code, _, err = fit_to(capsys, net, *by, "--int8", "-o", tmp_path / "model.pte")
        assert code == 0
        assert f"fit-to: the file itself is not measured: {net}:share_wrong takes a model and a batch" in err

    def test_a_package_for_ios_and_a_backend_of_ones_own(
        self, capsys: pytest.CaptureFixture[str], net: Path, tmp_path: Path
    ) -> None:
        pytest.importorskip("executorch", reason="needs the extra 'mobile' (executorch)")
        options = ("--max-drop", 0.1, "--metric", "net.py:share_wrong", "--lower-is-better", "--app", "ios",
                   "--measure-on", "net.py:others")  # fmt: skip
        code, out, err = fit_to(capsys, net, *options, "--backend", "net.py:portable", "-o", tmp_path / "package")
        assert code == 0, err
        assert (tmp_path / "package" / "Package.swift").is_file()
        assert "share_wrong 0.5000 -> 0." in out


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ((), "say what it has to come down to, as in --need macs=0.3"),
        (("--need", "macs"), "--need: got 'macs', must be macs=0.3"),
        (("--need", "watts=3"), "--need: got 'watts=3', must be macs=0.3"),
        (("--need", "macs=a.b"), "--need: got 'macs=a.b'"),
        (("--need", "macs=1.5"), "--need macs=1.5: MACs.left must be a number above 0 and below 1"),
        (("--need", f"macs={10**500}"), "MACs.left must be below 2**64, got one of 1661 bits"),
        (("--need", "size=0.5"), "--need size=0.5: Size.bytes must be an int"),
        (("--need", "params=10"), "cannot be met: 17 parameters is the least that can be reached"),
        (("--need", "params=10000"), "as it is: nothing has to be pruned"),
        (("--max-drop", 0.1, "--measure-on", "net.py:unlabelled"), "0.1 is a drop of a metric, and none is named"),
        (("--need", "macs=0.5", "--measure-on", "net.py:data"), "measure_on is data for a metric, and none is named"),
        (("--max-drop", -1, "--metric", "net.py:accuracy"), "error: --max-drop must be a number at least 0"),
        (("--max-drop", "nan", "--latency-ms", 1), "error: --max-drop must be a number at least 0, got nan"),
        (("--need", "macs=0.1", "--table", "table.json"), "--table table.json says what takes how long"),
        (("--need", "macs=0.1", "--threads", 1), "error: --threads 1 is how files are timed: add --latency-ms"),
        (("--need", "macs=0.1", "--loss", "net.py:no", "--criterion", "wanda"), "and wanda looks at no loss: choose"),
        (("--max-drop", 0.1, "--lower-is-better"), "what a drop of a metric is: add --metric net.py:error"),
        (("--latency-ms", 1, "--table", "."), "error: . is a folder: name a file"),
        (("--need", "macs=0.1", "--report", "no/page.html"), "error: there is no folder no, in which page.html"),
        (("--need", "macs=0.1", "-o", "model.pt"), "the name of a checkpoint: write a folder, or model.pte"),
        (("--need", "macs=0.1", "-o", __file__), "is a file: choose the path of a folder"),
        (("--max-drop", 0.1, "--metric", "net.py:nothing"), "metric nothing of the dense model is nan"),
        (("--need", "macs=0.1", "--backend", "coreml", "--app", "android"), "a program of coreml does not run there"),
        (("--need", "macs=0.1", "--backend", "vulkan", "--app", "ios"), "a program of vulkan does not run there"),
        (("--need", "macs=0.1", "--backend", "tpu"), "got 'tpu', must be xnnpack"),
        (("--need", "macs=0.1", "-o", "no/where/model"), "/no/where; create it: mkdir -p no/where"),
        (("--need", "macs=0.1", "--int8", "net.py:other"), "has no 'other'"),
        (
            ("--need", "macs=0.04", "--max-drop", 0.001, "--metric", "net.py:accuracy"),
            "macs=0.04 is not met within 0.001 of MulticlassAccuracy",
        ),
    ],
)
def test_what_is_refused(
    capsys: pytest.CaptureFixture[str], net: Path, tmp_path: Path, options: tuple[object, ...], text: str
) -> None:
    pytest.importorskip("executorch", reason="needs the extra 'mobile' (executorch)")
    code, out, err = fit_to(capsys, net, "-o", tmp_path / "model", *options)
    assert (code, out) == (2, "")
    assert text in err
    assert "Traceback" not in err
    assert "error: " not in text or "fit-to: pruning" not in err  # before anything is computed
    assert list(tmp_path.iterdir()) == []


def test_the_model_without_a_drop_is_what_prune_writes(
    capsys: pytest.CaptureFixture[str], net: Path, tmp_path: Path
) -> None:
    """The command prune takes the drop too, with what it keeps as the furthest."""
    options = ("--model", f"{net}:make", "--data", f"{net}:data", "--metric", f"{net}:accuracy")
    code = main(["prune", *options, "--keep-macs", "0.1", "--max-drop", "0.05", "-o", str(tmp_path / "small.pt")])
    out = capsys.readouterr().out
    assert code == 0
    assert out.splitlines()[0].split() == ["macs", "left", "parameters", "MACs", "MulticlassAccuracy"]
    assert "tried       8 networks" in out
    assert 0 < torch.load(tmp_path / "small.pt", weights_only=True)["state_dict"]["0.weight"].shape[0] < 16
