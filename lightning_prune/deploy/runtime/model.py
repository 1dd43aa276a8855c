"""A .pte as a function of tensors, run by ExecuTorch in a process of its own."""

import copy
import math
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_prune.deploy.artifact.files import final
from lightning_prune.deploy.artifact.manifest import data_paths, load_manifest, methods_of
from lightning_prune.deploy.program.arguments import check_seconds, check_text, given_path, program_path
from lightning_prune.deploy.program.constants import Constant
from lightning_prune.deploy.program.generation import check_call, example
from lightning_prune.deploy.program.signature import (
    DTYPES,
    MethodSpec,
    TensorSpec,
    check_methods_told,
    check_told,
    describe,
    dtype_name,
    takes,
)
from lightning_prune.deploy.program.structure import flat_inputs
from lightning_prune.deploy.runtime.child import CHILD, TIMEOUT
from lightning_prune.deploy.runtime.session import Session
from lightning_prune.deploy.runtime.turns import Turn
from lightning_prune.errors import ExportError
from lightning_prune.values import check_whole

AS_MUCH_AS_THERE_IS = 2**62
"""Memory for files that this very process has made."""
_ROOM = 2**28
_LARGEST_RANDOM = 2**27


class RuntimeModel:
    """A method of a .pte, called with tensors like a function.

    ExecuTorch runs it in a process of its own: a file that takes that process down is an error here, and yours goes
    on. A file that its manifest does not describe is refused before it is loaded; one without a manifest is read
    first, and refused where it is cut off or lacks its weights.

    The program is loaded as long as this lives, and loaded anew after a change of the file or of the number of threads,
    :meth:`unload` and a crash. What it keeps in buffers from one call to the next begins anew then too.

    Args:
        path: of the .pte; a manifest beside it gives names, ranges of sizes and the .ptd file.
        method: name of the method in it.
        signature: what the method takes and gives, if known; the manifest is not looked at then. None: from the
            manifest, or from the file where there is none.
        data_path: of the .ptd file with its weights, for a file without a manifest.
        threads: of the ExecuTorch runtime; None: as many as it takes by itself, or as :func:`thread_count` says.
        timeout: seconds that one call may take.
        memory: bytes that the other process may take for it beyond what the runtime takes (on Linux); None: 256 MiB, or
            eight times the file where that is more.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another suffix, fewer than one thread, no time or no memory.
        TypeError: an argument is of another type.
        ExportError: the file is not the one that its manifest describes, or not a program that this runtime can load,
            or it has no such method of tensors alone.
        ImportError: ExecuTorch is not installed.
    """

    def __init__(
        self,
        path: str | Path,
        method: str = "forward",
        *,
        signature: MethodSpec | None = None,
        data_path: str | Path | None = None,
        threads: int | None = None,
        timeout: float = TIMEOUT,
        memory: int | None = None,
    ) -> None:
        check_text("method", method, "forward")
        if threads is not None:
            check_whole("threads", threads, 1)
        check_seconds("timeout", timeout)
        if memory is not None:
            check_whole("memory", memory, 1)
        # a file that an export is writing has its signature, and gets its suffix at the end
        self.path = program_path(path) if signature is None else given_path(path)
        self.data_path = None if data_path is None else given_path(data_path, "data_path", "model.ptd")
        self.threads, self.timeout, self.memory = threads, timeout, memory
        if not self.path.is_file():
            raise FileNotFoundError(f"no .pte file at {self.path}")
        self.manifest = checked_manifest(self.path) if signature is None else None
        paths = () if self.manifest is None else data_paths(self.manifest, self.path)
        if len(paths) > 1:
            raise ExportError(f"{self.path} has {len(paths)} .ptd files, and this runtime loads one: export it again")
        self.data_path = paths[0] if paths else self.data_path
        self._take(method, signature)

    def __repr__(self) -> str:
        return f"RuntimeModel({str(self.path)!r}, inputs=[{', '.join(map(str, self.inputs))}])"

    def __call__(self, *inputs: Any, **named: Any) -> tuple[Tensor, ...]:
        """Run the program.

        Args:
            inputs: tensors of the dtypes and of shapes in the ranges of ``self.inputs``; any memory layout. Dicts,
                tuples and dataclasses of them are taken apart, one alone by the names of ``self.inputs``.
            named: those that are given by name.

        Returns:
            its outputs, tensors of their own.

        Raises:
            ValueError: their number, a shape or a dtype is another.
            ExportError: it fails, takes the process down or does not answer.
        """
        return self.run(self.prepared(*inputs, **named))

    @property
    def is_verified(self) -> bool:
        """Whether a manifest stands beside the file; it describes this very file then."""
        return self.manifest is not None

    @property
    def generation(self) -> Mapping[str, Any]:
        """What its manifest says of a decoder that writes text, for runners of it; empty of others."""
        return {} if self.manifest is None or self.method != "forward" else self.manifest.get("generation", {})

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the methods of the file, those left out that take nothing: they hold constants."""
        if self.manifest is not None:
            return tuple(self.manifest["methods"])
        methods = read_contents(self.path, self.timeout, constants=False)["methods"]
        return tuple(each["name"] for each in methods if each["inputs"])

    @property
    def constants(self) -> Mapping[str, tuple[Constant, ...]]:
        """What the constant methods of the file hold, by name; a single value as a tuple of one."""
        methods = read_contents(self.path, self.timeout, constants=False)["methods"]
        names = sorted(each["name"] for each in methods if not each["inputs"])
        with CHILD.releasing():
            return {name: tuple(self._ask("run", name, CHILD.number())) for name in names}

    def prepared(self, *inputs: Any, **named: Any) -> tuple[Tensor, ...]:
        """Return the inputs checked and in the layout of the program (contiguous; another would be read wrongly).

        Raises:
            ValueError: number, shape or dtype is another.
        """
        inputs = flat_inputs([spec.name for spec in self.inputs], inputs, named)
        if not takes(self.inputs, inputs):
            wanted = ", ".join(f"{spec.shape_text()} {dtype_name(spec.dtype)}" for spec in self.inputs) or "no input"
            raise ValueError(f"{self.path.name} takes {wanted}; got {describe(inputs) or 'nothing'}")
        if self.generation:
            check_call(self.generation, inputs)
        return tuple(x.detach().cpu().contiguous() for x in inputs)

    def run(self, prepared: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Run the program on inputs that :meth:`prepared` returned; nothing is checked again.

        Raises:
            ExportError: it fails, takes the process down or does not answer.
        """
        return tuple(self._ask("run", inputs=prepared))

    def timed(self, prepared: Sequence[Tensor], reduce: Callable[[Sequence[float]], float]) -> Turn:
        """Return what :func:`~lightning_prune.deploy.runtime.turns.in_turns` takes: a turn made one number.

        The other process takes the time around each run, so that the way there and back does not count.

        Args:
            prepared: inputs that :meth:`prepared` returned.
            reduce: seconds of each run of a turn -> one number.
        """
        return lambda runs: reduce(self._ask("turn", inputs=prepared, runs=runs))

    def reset(self) -> None:
        """Let what the program keeps in buffers be what it was at first; the next call reads the file again."""
        self.unload()

    def session(self) -> Session:
        """Return calls in a row, from the first state; each session loads the program for itself.

        Raises:
            ExportError: what is fed is larger than what a file may have made here unasked.
        """
        fed = {feed.input for feed in self.signature.feeds}
        size = sum(math.prod(x.shape) * x.dtype.itemsize for x in self.inputs if x.name in fed)
        if size > (room := room_of(self.path, self.data_path) if self.memory is None else self.memory):
            raise ExportError(f"{self.path} takes {size:,} bytes from call to call, above {room:,}: pass memory=")
        own = self.other(self.method)
        state = [] if self.manifest is None else self.manifest.get("state", [])
        keeps = [each["name"] for each in state if self.method in each["methods"]]

        def restart() -> None:
            own.unload()
            own._ask("load")

        # a program that was loaded anew in between, as after a crash, must not begin anew without a word
        return Session(lambda *x: own._ask("run", inputs=x, goes_on=bool(keeps)), own.signature, restart, keeps)

    def unload(self) -> None:
        """Let go of the program; the next call reads the file again."""
        CHILD.release([self._number])

    def other(self, method: str) -> "RuntimeModel":
        """Return another method of the same file.

        Raises:
            ExportError: there is none, or it takes something else than tensors.
        """
        other = copy.copy(self)
        other._take(method, None)
        return other

    def random_inputs(self) -> tuple[Tensor, ...]:
        """Return inputs that the program takes, the same at each call.

        Normal numbers, bytes of 0 to 255, zeros for other whole ones; of a decoder a text that fills its cache.

        Raises:
            ExportError: they are larger than what a file may have made here unasked.
        """
        size = sum(math.prod(spec.shape) * spec.dtype.itemsize for spec in self.inputs)
        if size > _LARGEST_RANDOM:
            raise ExportError(
                f"{self.path} takes {size:,} bytes of inputs, which are not made unasked: pass inputs of your own"
            )
        if self.generation:
            return example(self.generation)
        generator = torch.Generator().manual_seed(0)

        def drawn(spec: TensorSpec) -> Tensor:
            if spec.dtype == torch.uint8:
                return torch.randint(0, 256, spec.shape, generator=generator, dtype=torch.uint8)
            if spec.dtype.is_floating_point:
                return torch.randn(spec.shape, generator=generator).to(spec.dtype)
            return torch.zeros(spec.shape, dtype=spec.dtype)

        return tuple(drawn(spec) for spec in self.inputs)

    def doubled(self, folder: Path) -> list[dict[str, Any]]:
        """Write variants of the file with the calls of one operator doubled; see ``worker/doubling.py``."""
        path = str(self.path.absolute())
        return CHILD.ask("write_doubled", self.path, self.timeout, path=path, method=self.method, folder=str(folder))

    def variant(self, path: str) -> "RuntimeModel":
        """Return the same program read from another file that :meth:`doubled` wrote."""
        other = copy.copy(self)
        other.path = Path(path)
        other._count()
        return other

    def _take(self, method: str, signature: MethodSpec | None) -> None:
        """Let this be a method of the file, loaded and seen to take what is said."""
        self.method = method
        if signature is None and self.manifest is not None:
            described = methods_of(self.manifest)
            if method not in described:
                raise ExportError(f"{self.path} has no method {method!r}: its methods are {', '.join(described)}")
            signature = described[method]
        elif signature is None:
            signature = _undescribed(self.path, method, self.timeout, self.data_path)
        self.signature, self.inputs, self.outputs = signature, signature.inputs, signature.outputs
        self._count()
        loaded = self._ask("load")
        if self.manifest is not None:
            check_methods_told(self.path, self.manifest["methods"], loaded["methods"])
        check_told(self.path, signature, loaded["inputs"], loaded["outputs"])

    def _count(self) -> None:
        self._number = CHILD.number()
        weakref.finalize(self, CHILD.drop, self._number)

    def _ask(self, task: str, method: str = "", number: int | None = None, **arguments: Any) -> Any:  # noqa: ANN401
        place = {
            "number": self._number if number is None else number,
            "path": str(self.path.absolute()),
            "method": method or self.method,
            "data": None if self.data_path is None else str(self.data_path.absolute()),
            "threads": CHILD.threads if self.threads is None else self.threads,
            "room": room_of(self.path, self.data_path) if self.memory is None else self.memory,
        }
        try:
            return CHILD.ask(task, final(self.path), self.timeout, place=place, **arguments)
        except ExportError as error:
            if "out_of_memory" not in str(error):  # XNNPACK's word, in what the process said
                raise
            raise ExportError(
                f"{error}: it may take {place['room']:,} bytes beyond the runtime; pass memory="
            ) from error


def _undescribed(path: Path, method: str, timeout: float, data_path: Path | None) -> MethodSpec:
    """Return the signature of a method of a file without a manifest, after checking that its weights are there."""
    contents = read_contents(path, timeout, constants=False)
    if contents["is_external"] and data_path is None:
        names = [path.with_suffix(suffix).name for suffix in (".json", ".ptd")]
        missing = [names[0]] if path.with_suffix(".ptd").is_file() else names
        raise ExportError(
            f"{path} keeps its weights in a .ptd file, and the manifest that names it, {names[0]}, is missing: copy"
            f" {' and '.join(missing)} too"
        )
    methods = {each["name"]: each for each in contents["methods"]}
    if method not in methods:
        raise ExportError(f"{path} has no method {method!r}: its methods are {', '.join(methods)}")
    sides = []
    for kind in ("input", "output"):
        values, sides_of = methods[method][f"{kind}s"], []
        for index, value in enumerate(values):
            name = kind if len(values) == 1 else f"{kind}_{index}"
            if value.get("dtype") not in DTYPES:
                raise ExportError(
                    f"method {method!r} of {path}: {name} is no plain tensor but"
                    f" {value.get('kind') or value.get('dtype')}: call it through executorch.runtime"
                )
            shape = tuple(value["shape"])
            dynamic = {i: (min(1, size), size) for i, size in enumerate(shape)} if value["is_dynamic"] else {}
            sides_of.append(TensorSpec(name, shape, DTYPES[value["dtype"]], dynamic))
        sides.append(tuple(sides_of))
    return MethodSpec(*sides)


def checked_manifest(path: Path) -> dict[str, Any] | None:
    """Return the manifest of a .pte after checking that it describes this very file; None where there is none.

    Raises:
        FileNotFoundError: no such .pte.
        ValueError: the path does not end in .pte.
        ExportError: the manifest is malformed, or describes another file.
    """
    path = program_path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no .pte file at {path}")
    try:
        return load_manifest(path)
    except FileNotFoundError:
        return None


def read_contents(path: Path, timeout: float = TIMEOUT, constants: bool = True) -> dict[str, Any]:
    """Return what a .pte holds as plain values; see ``worker/contents.py``. It is read in the other process, not run.

    Raises:
        ExportError: it is none, or damaged.
    """
    return CHILD.ask("contents", path, timeout, path=str(path.absolute()), constants=constants, room=room_of(path))


def room_of(*files: Path | None) -> int:
    """Return how many bytes the other process may take for files that someone else may have made."""
    return max(_ROOM, 8 * sum(file.stat().st_size for file in files if file is not None and file.is_file()))


@contextmanager
def thread_count(threads: int) -> Iterator[None]:
    """Run ExecuTorch on this many threads inside the block, and on as many as before after it.

    It holds for every :class:`RuntimeModel` that names no number of its own, at its next call.

    Raises:
        ValueError: fewer than one thread.
        TypeError: it is no whole number.
    """
    check_whole("threads", threads, 1)
    before, CHILD.threads = CHILD.threads, threads
    try:
        yield
    finally:
        CHILD.threads = before
