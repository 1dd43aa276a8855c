"""A session carries what is for the next call; what is refused or fails changes nothing."""

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_prune.deploy import MethodSpec, Portable, RuntimeModel, Session, TensorSpec, export, thread_count
from lightning_prune.deploy.program.signature import Feed
from lightning_prune.errors import ExportError, SessionError

X, H, N = (TensorSpec(name, (1, 2), torch.float32) for name in ("x", "h", "n"))
SPEC = MethodSpec((X, H), (X, N), (Feed("h", "n", 1.0),))


def summed(x: Tensor, h: Tensor) -> Sequence[Tensor]:
    return x + h, x + h


def full(value: float) -> Tensor:
    return torch.full((1, 2), float(value))


def test_it_carries_resets_and_goes_on_from_an_earlier_state():
    session = Session(summed, SPEC)
    assert [float(session.step(full(x))[0][0, 0]) for x in (1, 2, 3)] == [2, 4, 7]
    kept = session.state
    session.reset()
    assert float(session.step(x=full(1))[1][0, 0]) == 2
    session.reset(kept)
    kept["h"].zero_()
    assert float(session.step(full(1))[1][0, 0]) == 8


@pytest.mark.parametrize(
    ("dtype", "first"), [(torch.uint8, 255.0), (torch.float64, 1e300), (torch.int64, 2.0**60), (torch.bool, 1.0)]
)
def test_it_begins_with_any_number_of_the_type(dtype: torch.dtype, first: float):
    h, n = (TensorSpec(name, (2,), dtype) for name in "hn")
    session = Session(lambda h: (h,), MethodSpec((h,), (n,), (Feed("h", "n", first),)))
    assert session.state["h"].dtype == dtype
    assert session.state["h"].tolist() == [first] * 2


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        ((), r"a step takes x \(1, 2\) float32; got nothing"),
        ((torch.zeros(1, 3),), r"got \(1, 3\) float32"),
        ((torch.zeros(1, 2), torch.zeros(1, 2)), "takes x"),
        ((torch.zeros(1, 2, dtype=torch.int64),), "int64"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(inputs: tuple[Tensor, ...], text: str):
    session = Session(summed, SPEC)
    session.step(full(1))
    with pytest.raises(ValueError, match=text):
        session.step(*inputs)
    with pytest.raises(ValueError, match=r"a state is h \(1, 2\) float32; got \(2, 2\)"):
        session.reset({"h": torch.zeros(2, 2)})
    with pytest.raises(ValueError, match="no fed input 'x'; there is h"):
        session.reset({"x": full(1)})
    for state in (full(1), (full(1),)):
        with pytest.raises(TypeError, match=r"must be a dict by the names of the inputs, as in reset\(\{'h': …\}\)"):
            session.reset(state)  # pyright: ignore[reportArgumentType]
    assert float(session.step(full(1))[1][0, 0]) == 3


def test_after_a_failed_call_it_goes_on_or_asks_for_a_reset():
    failing = [False]

    def run(x: Tensor, h: Tensor) -> Sequence[Tensor]:
        if failing[0]:
            raise ExportError("no memory")
        return summed(x, h)

    restarted = list[int]()
    fed, keeping = Session(run, SPEC), Session(run, SPEC, lambda: restarted.append(1), ["ring"])
    for session in (fed, keeping):
        session.step(full(1))
        failing[0] = True
        with pytest.raises(ExportError, match="no memory"):
            session.step(full(1))
        failing[0] = False
    assert float(fed.step(full(1))[1][0, 0]) == 3
    with pytest.raises(SessionError, match=r"keeps \(ring\) is lost: reset\(\) begins anew"):
        keeping.step(full(1))
    keeping.reset()
    assert restarted == [1]
    assert float(keeping.step(full(1))[1][0, 0]) == 2


def test_a_second_thread_is_refused_and_the_first_goes_on():
    inside, end = threading.Event(), threading.Event()

    def run(x: Tensor, h: Tensor) -> Sequence[Tensor]:
        inside.set()
        end.wait(10)
        return summed(x, h)

    session, given = Session(run, SPEC), list[float]()
    thread = threading.Thread(target=lambda: given.append(float(session.step(full(1))[1][0, 0])))
    thread.start()
    assert inside.wait(10)
    for call in (lambda: session.step(full(5)), session.reset):
        with pytest.raises(SessionError, match="another thread is in a call"):
            call()
    end.set()
    thread.join(10)
    assert given == [2]
    assert float(session.step(full(1))[1][0, 0]) == 3


class Both(nn.Module):
    """Counts in a buffer, and adds up in an argument."""

    count: Tensor

    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(1, 2))

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        self.count.copy_(self.count + 1)
        return self.count * 10, h + x


@pytest.mark.slow
def test_sessions_of_a_file_are_apart_and_no_reload_goes_unnoticed(tmp_path: Path):
    pytest.importorskip("executorch")
    export(Both().eval(), tmp_path / "a.pte", example_inputs=(full(0), full(0)), feeds={"h": 1}, backend=Portable())
    model = RuntimeModel(tmp_path / "a.pte")
    one, other = model.session(), model.session()
    model.memory = 4
    with pytest.raises(ExportError, match=r"a\.pte takes 8 bytes from call to call, above 4: pass memory="):
        model.session()
    told = [[float(y[0, 0]) for y in session.step(full(1))] for session in (one, one, other, one)]
    assert told == [[10, 1], [20, 2], [10, 1], [30, 3]]
    for threads in (1, 2):  # one of them is another number, for which all programs are loaded anew
        with thread_count(threads):
            RuntimeModel(tmp_path / "a.pte")
    with pytest.raises(ExportError, match="what it kept from call to call is gone"):
        one.step(full(1))
    with pytest.raises(SessionError, match=r"count\) is lost"):
        one.step(full(1))
    assert float(one.state["h"][0, 0]) == 3
    one.reset(one.state)
    assert [float(y[0, 0]) for y in one.step(full(1))] == [10, 4]


VECTORS = json.loads((Path(__file__).parents[3] / "examples" / "shared" / "vectors.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", [case for case in VECTORS["sessions"] if "weights" in case])
def test_the_vectors_of_the_phones(case: dict[str, Any]):
    inputs, outputs = (
        [TensorSpec(one["name"], tuple(one["shape"]), torch.float32) for one in case["spec"][side]]
        for side in ("inputs", "outputs")
    )
    spec = MethodSpec(tuple(inputs), tuple(outputs), tuple(Feed(**feed) for feed in case["spec"]["feeds"]))
    sizes, failing, restarted = [torch.Size(one.shape).numel() for one in outputs], [False], list[int]()
    weights = torch.tensor(case["weights"]).view(sum(sizes), -1)

    def run(*given: Tensor) -> Sequence[Tensor]:
        if failing[0]:
            raise ExportError("no memory")
        parts = (weights @ torch.cat([x.flatten() for x in given])).split(sizes)
        return [part.view(one.shape) for part, one in zip(parts, outputs, strict=True)]

    session = Session(run, spec, lambda: restarted.append(1), case["keeps"])

    def tensors(values: Sequence[Sequence[float]]) -> list[Tensor]:
        return [torch.tensor([each]) for each in values]

    for event in case["events"]:
        first = {name: torch.tensor([value]) for name, value in event.get("first", {}).items()}
        match event["do"]:
            case "step" if "gives" in event:
                assert [y.flatten().tolist() for y in session.step(*tensors(event["inputs"]))] == event["gives"]
            case "state":
                assert {name: x.flatten().tolist() for name, x in session.state.items()} == event["is"]
            case "reset" if "refused" not in event:
                session.reset(first)
            case kind:
                failing[0] = kind == "fail"
                with pytest.raises((ValueError, SessionError, ExportError)):
                    session.reset(first) if kind == "reset" else session.step(*tensors(event["inputs"]))
                failing[0] = False
    assert len(restarted) == case["restarts"]
