"""Networks of ``fit-to`` that go by what the file of the last one cost and took."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cli_cases import fit_to

from lightning_prune import MACs
from lightning_prune.cli._models import loaded_model
from lightning_prune.deploy import XNNPACK
from lightning_prune.deploy.latency_table import Bench


@pytest.mark.slow
def test_what_integers_cost_is_left_out_of_the_drop(
    capsys: pytest.CaptureFixture[str], net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first file loses 0.1 more than its model, so that the next model may lose 0.1 of the 0.2."""
    import lightning_prune.cli._judging as judging
    import lightning_prune.deploy as deploy

    pytest.importorskip("executorch", reason="needs the extra 'mobile' (executorch)")
    written: list[tuple[Path, int]] = []

    def export(model: Any, path: Path, **_: Any) -> Any:
        written.append((Path(path), model[0].out_features))
        return SimpleNamespace(metrics={"eager": 1.0, "executorch": 0.9}, path=path)

    monkeypatch.setattr(deploy, "export", export)
    monkeypatch.setattr(judging, "export", export)
    options = ("--max-drop", 0.2, "--metric", "net.py:accuracy", "--int8", "-o", tmp_path / "small.pte")
    code, _, err = fit_to(capsys, net, *options)
    assert code == 0, err
    assert [path.name for path, _ in written] == ["0.pte", "0.pte", "small.pte"]
    assert not written[0][0].exists()
    assert [line for line in err.splitlines() if "worse" in line] == [
        f"fit-to: pruning Sequential towards fewest MACs, {net}:accuracy at most {drop} worse"
        for drop in ("0.2", "0.1")
    ]
    assert written[0][1] < written[1][1] == written[2][1]
    options = ("--max-drop", 0.05, *options[2:-1], tmp_path / "other.pte")
    code, _, err = fit_to(capsys, net, *options)
    assert code == 2
    assert "integers cost 0.1 of MulticlassAccuracy beside what pruning costs, and 0.05 may be lost in all" in err
    assert not list(tmp_path.glob("other*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "threads", "text"),
    [
        ("xnnpack", 1, "another backend do not go together: 'xnnpack' and 'xnnpack Int8'"),
        ("xnnpack Int8", 2, "2 and 1"),
    ],
)
def test_a_table_of_other_programs_is_refused_and_left_as_it_is(
    capsys: pytest.CaptureFixture[str], net: Path, tmp_path: Path, backend: str, threads: int, text: str
) -> None:
    """The metric is the accuracy of the model's classes; the dense network is timed as integers."""
    pytest.importorskip("executorch", reason="needs the extra 'mobile' (executorch)")
    empty = Bench(XNNPACK(), threads, 100, tmp_path).table(None)
    replace(empty, backend=backend).save(tmp_path / "table.json")
    kept = (tmp_path / "table.json").read_bytes()
    options = ("--latency-ms", 1e-5, "--max-drop", 0.3, "--int8", "--table", tmp_path / "table.json")
    code, out, err = fit_to(capsys, net, *options, "-o", tmp_path / "model")
    assert (code, out, (tmp_path / "table.json").read_bytes()) == (2, "", kept)
    assert "fit-to: no --metric is named: it is the accuracy over 4 classes" in err.splitlines()
    assert text in err
    assert "name another file" in err
    assert [path.name for path in tmp_path.iterdir()] == ["table.json"]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A machine on which files take 8 ms times the share of their units that is left, and a fifth more when pruned.

    The table is of the program that is shipped; it says 10 ms of the dense network, and the same share of that. What
    comes back are the widths that were timed.
    """
    import lightning_prune.cli._judging as judging
    import lightning_prune.deploy as deploy

    pytest.importorskip("executorch", reason="needs the extra 'mobile' (executorch)")
    widths: list[int] = []

    shipped: list[Any] = []

    def export(model: Any, path: Path, **options: Any) -> Any:
        shipped.append(options["backend"])
        return SimpleNamespace(metrics={}, path=path, width=model[0].out_features)

    def measured(*_: Any, backend: Any, **__: Any) -> Any:
        assert backend is shipped[-1]
        return table

    def milliseconds(artifacts: dict[str, Any], *, threads: int) -> dict[str, float]:
        assert threads == 1
        pruned = [name for name in artifacts if name != "dense"]
        widths[:] = [artifacts[name].width for name in pruned]
        return {"dense": 8.0, **{name: 1.2 * 8.0 * artifacts[name].width / 32 for name in pruned}}

    dense = SimpleNamespace(anchors=(SimpleNamespace(milliseconds=10.0),))
    table = SimpleNamespace(networks=(dense,), device="a machine")
    monkeypatch.setattr(deploy, "export", export)
    monkeypatch.setattr(judging, "export", export)
    monkeypatch.setattr(judging, "milliseconds", milliseconds)
    monkeypatch.setattr(judging, "latency_table", measured)
    monkeypatch.setattr(judging, "Latency", lambda ms, _: MACs(ms / 10.0))
    return widths


class TestMilliseconds:
    def test_the_next_network_goes_by_what_the_last_took(
        self, capsys: pytest.CaptureFixture[str], net: Path, tmp_path: Path, clock: list[int]
    ) -> None:
        code, out, err = fit_to(capsys, net, "--latency-ms", 4, "-o", tmp_path / "small.pte")
        assert code == 0, err
        assert clock == [15, 13]
        assert [line.removeprefix("fit-to: ") for line in err.splitlines() if " ms" in line] == [
            "8 ms; measuring its layers at several widths, --table FILE would keep them",
            "pruning Sequential towards 4 ms", "4.5 ms, 12.5% too long",
            "pruning Sequential towards 4 ms", "3.9 ms, within",
        ]  # fmt: skip
        rows = [line.split() for line in out.splitlines()[:6]]
        assert rows[0] == ["round", "ms", "of", "dense", "parameters", "MACs"]
        assert rows[2][:3] == ["dense", "8", "100%"]
        assert rows[3] == ["1", "4.5", "56.2%", "199", "180", "12.5%", "too", "long"]
        assert rows[4][-1] == "within"
        assert loaded_model(f"{net}:make", tmp_path / "small.pt").get_parameter("0.weight").shape[0] == 13

    def test_the_largest_of_those_that_are_fast_enough_is_written(
        self,
        capsys: pytest.CaptureFixture[str],
        net: Path,
        tmp_path: Path,
        clock: list[int],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Between what was too short and what was too long the others are interpolated; they come out shorter still."""
        import lightning_prune.cli._judging as judging

        def milliseconds(files: dict[str, Any], *, threads: int) -> dict[str, float]:
            clock[:] = [file.width for name, file in files.items() if name != "dense"]
            slow = dict(zip(clock, (3.0, 5.0), strict=False))
            return {name: 8.0 if name == "dense" else slow.get(file.width, 2.0) for name, file in files.items()}

        monkeypatch.setattr(judging, "milliseconds", milliseconds)
        code, out, err = fit_to(capsys, net, "--latency-ms", 4, "-o", tmp_path / "small.pte")
        assert code == 0, err
        assert clock[:3] == [15, 20, 18]
        assert [line.split()[1] for line in out.splitlines()[3:6]] == ["3", "5", "2"]
        assert loaded_model(f"{net}:make", tmp_path / "small.pt").get_parameter("0.weight").shape[0] == 15

    def test_where_another_need_holds_the_network_it_is_not_tried_again(
        self, capsys: pytest.CaptureFixture[str], net: Path, tmp_path: Path, clock: list[int]
    ) -> None:
        """60 parameters take less than the milliseconds that are allowed, however many of these are asked for."""
        code, _, err = fit_to(capsys, net, "--latency-ms", 4, "--need", "params=60", "-o", tmp_path / "small.pte")
        assert code == 0, err
        assert len(clock) == 2
        assert clock[0] == clock[1] < 13
        assert loaded_model(f"{net}:make", tmp_path / "small.pt").get_parameter("0.weight").shape[0] == clock[0]

    def test_with_a_drop_the_report_has_the_milliseconds(
        self, capsys: pytest.CaptureFixture[str], net: Path, tmp_path: Path, clock: list[int]
    ) -> None:
        options = ("--latency-ms", 4, "--max-drop", 0.2, "--metric", "net.py:share_wrong", "--lower-is-better")
        code, _, err = fit_to(capsys, net, *options, "-o", tmp_path / "small.pte")
        assert code == 0, err
        assert "towards 4 ms, " in err
        options = ("--latency-ms", 0.35, *options[2:])
        code, out, err = fit_to(capsys, net, *options, "-o", tmp_path / "other.pte")
        assert (code, out) == (2, "")
        assert "0.35 ms is not met within 0.2 of share_wrong" in err
        assert err.splitlines()[-2].split()[:2] == ["1", "1.2"]
        assert not list(tmp_path.glob("other*"))

    def test_what_the_table_asks_too_much_for_is_timed_all_the_same(
        self,
        capsys: pytest.CaptureFixture[str],
        net: Path,
        tmp_path: Path,
        clock: list[int],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """By the table 0.35 ms are out of reach within the drop; the file that is within it takes less."""
        import lightning_prune.cli._judging as judging

        def milliseconds(files: dict[str, Any], *, threads: int) -> dict[str, float]:
            return {name: 8.0 if name == "dense" else 0.345 for name in files}

        monkeypatch.setattr(judging, "milliseconds", milliseconds)
        options = ("--latency-ms", 0.35, "--max-drop", 0.2, "--metric", "net.py:share_wrong", "--lower-is-better")
        code, out, err = fit_to(capsys, net, *options, "-o", tmp_path / "small.pte")
        assert code == 0, err
        assert "fit-to: 0.345 ms, within" in err.splitlines()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(judging, "Latency", lambda ms, _: MACs(ms / 10.0))
            code, out, err = fit_to(capsys, net, *options, "--need", "params=20", "-o", tmp_path / "other.pte")
        assert (code, out) == (2, "")
        assert "params=20, 0.35 ms is not met within 0.2" in err

    def test_nothing_is_measured_for_what_can_be_refused_before(
        self,
        capsys: pytest.CaptureFixture[str],
        net: Path,
        tmp_path: Path,
        clock: list[int],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        import lightning_prune.cli._judging as judging

        def measured(*_: Any, **__: Any) -> Any:
            raise AssertionError("layers were measured")

        monkeypatch.setattr(judging, "latency_table", measured)
        for options, text in (
            (("--latency-ms", 8), "the network takes 8 ms as it is"),
            (("--max-drop", 0.1, "--metric", "net.py:nothing"), "metric nothing of the dense model is nan"),
            (("--max-drop", 0.1, "--measure-on", "net.py:unlabelled"), "is a drop of a metric, and none is named"),
            (("--backend", "vulkan"), "measured on this machine, and vulkan does not run here"),
        ):
            code, out, err = fit_to(capsys, net, "--latency-ms", 4, *options, "-o", tmp_path / "small.pte")
            assert (code, out) == (2, "")
            assert text in err
            assert not list(tmp_path.iterdir())

    def test_what_cannot_be_reached(
        self, capsys: pytest.CaptureFixture[str], net: Path, tmp_path: Path, clock: list[int]
    ) -> None:
        code, _, err = fit_to(capsys, net, "--latency-ms", 9, "-o", tmp_path / "small.pte")
        assert code == 2
        assert "--latency-ms 9: the network takes 8 ms as it is" in err
        code, _, err = fit_to(capsys, net, "--latency-ms", 0.01, "-o", tmp_path / "small.pte")
        assert code == 2
        assert "is the least that can be reached" in err
        code, _, err = fit_to(capsys, net, "--latency-ms", -1, "-o", tmp_path / "small.pte")
        assert code == 2
        assert "--latency-ms must be a number above 0" in err
        assert not list(tmp_path.iterdir())
