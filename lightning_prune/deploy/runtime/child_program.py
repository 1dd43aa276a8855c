"""A .pte in the process of its own: manifest checked, signature read, then called with tensors like a function."""

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_prune.deploy.artifact.files import final
from lightning_prune.deploy.artifact.manifest import data_paths, load_manifest, methods_of
from lightning_prune.deploy.program.arguments import check_seconds, check_text, program_path
from lightning_prune.deploy.program.signature import DTYPES, MethodSpec, TensorSpec, describe, dtype_name
from lightning_prune.deploy.runtime.child import CHILD, TIMEOUT
from lightning_prune.deploy.runtime.turns import Turn
from lightning_prune.errors import ExportError
from lightning_prune.values import check_whole


class ChildProgram:
    """A method of a .pte that runs in the other process.

    Args:
        path: of the .pte. A manifest beside it must describe it, and then gives names, ranges of sizes and .ptd file.
        method: name of the method in it.
        threads: of the ExecuTorch runtime.
        timeout: seconds that one call may take.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another suffix, fewer than one thread, or no time.
        TypeError: an argument is of another type.
        ExportError: the file is not the one that its manifest describes, is no program, or has no such method of
            tensors alone.
        ImportError: ExecuTorch is not installed.
    """

    def __init__(
        self, path: str | Path, method: str = "forward", *, threads: int = 1, timeout: float = TIMEOUT
    ) -> None:
        check_text("method", method, "forward")
        check_whole("threads", threads, 1)
        check_seconds("timeout", timeout)
        self.path = self.subject = program_path(path)
        self.timeout = timeout
        self.manifest = checked_manifest(self.path)
        self._place = {"data": _data(self.manifest, self.path), "threads": threads}
        self._take(method, None)

    @classmethod
    def written(
        cls, path: Path, method: str, signature: MethodSpec, data: Path | None, timeout: float
    ) -> "ChildProgram":
        """Return a method of a file that was written just now, has no manifest yet and may have another name.

        Args:
            path: of the file.
            method: name of the method in it.
            signature: what it takes and gives.
            data: file with its weights, if these are apart.
            timeout: seconds that one call may take; it runs on as many threads as the runtime takes by itself.
        """
        program = object.__new__(cls)
        program.path, program.subject, program.timeout, program.manifest = path, final(path), timeout, None
        program._place = {"data": None if data is None else str(data.absolute()), "threads": None}
        program._take(method, signature)
        return program

    def _take(self, method: str, signature: MethodSpec | None) -> None:
        described = {} if self.manifest is None else methods_of(self.manifest)
        self.method = method
        signature = signature or described.get(method) or self._signature()
        self.inputs, self.outputs = signature.inputs, signature.outputs

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the methods of the file, those left out that take nothing: they hold constants."""
        if self.manifest is not None:
            return tuple(self.manifest["methods"])
        found = read_contents(self.path, self.timeout, constants=False)["methods"]
        return tuple(each["name"] for each in found if each["inputs"])

    def other(self, method: str) -> "ChildProgram":
        """Return another method of the same file.

        Raises:
            ExportError: there is none, or it takes something else than tensors.
        """
        other = copy.copy(self)
        other._take(method, None)
        return other

    @property
    def is_verified(self) -> bool:
        """Whether a manifest stands beside the file; it describes this very file then."""
        return self.manifest is not None

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run the program.

        Raises:
            ValueError: number, shape or dtype of the inputs is another.
            ExportError: it fails, takes the process down or does not answer.
        """
        outputs = self._ask("run", inputs=self.prepared(*inputs))
        if not isinstance(outputs, list) or not all(isinstance(x, Tensor) for x in outputs):
            raise ExportError(f"{self.path} gives something else than tensors: {describe(outputs)}")
        return tuple(outputs)

    def turn(self, inputs: Sequence[Tensor], runs: int) -> list[float]:
        """Return the seconds of each of some runs on what :meth:`prepared` returned."""
        return list(self._ask("turn", inputs=list(inputs), runs=runs))

    def timed(self, inputs: Sequence[Tensor], reduce: Callable[[Sequence[float]], float]) -> Turn:
        """Return what :func:`~lightning_prune.deploy.runtime.turns.in_turns` takes: a turn made one number."""
        return lambda runs: reduce(self.turn(inputs, runs))

    def prepared(self, *inputs: Tensor) -> list[Tensor]:
        """Return the inputs checked and contiguous: another memory layout would be read wrongly without a word.

        Raises:
            ValueError: number, shape or dtype is another.
        """
        tensors = [x for x in inputs if isinstance(x, Tensor)]
        wrong = len(tensors) != len(inputs) or len(tensors) != len(self.inputs)
        if wrong or not all(spec.takes(x) for spec, x in zip(self.inputs, tensors, strict=True)):
            wanted = ", ".join(f"{spec.shape_text()} {dtype_name(spec.dtype)}" for spec in self.inputs) or "no input"
            raise ValueError(f"{self.path.name} takes {wanted}; got {describe(inputs) or 'nothing'}")
        return [x.detach().cpu().clone(memory_format=torch.contiguous_format) for x in tensors]

    def random_inputs(self) -> list[Tensor]:
        """Return inputs that the program takes, the same at each call.

        Normal numbers, bytes of 0 to 255, zeros for other whole ones.
        """
        generator = torch.Generator().manual_seed(0)

        def drawn(spec: TensorSpec) -> Tensor:
            if spec.dtype == torch.uint8:
                return torch.randint(0, 256, spec.shape, generator=generator, dtype=torch.uint8)
            if spec.dtype.is_floating_point:
                return torch.randn(spec.shape, generator=generator).to(spec.dtype)
            return torch.zeros(spec.shape, dtype=spec.dtype)

        return [drawn(spec) for spec in self.inputs]

    def doubled(self, folder: Path) -> list[dict[str, Any]]:
        """Write variants of the file with the calls of one operator doubled; see ``worker/doubling.py``."""
        arguments = {"path": str(self.path.absolute()), "method": self.method, "folder": str(folder)}
        return CHILD.ask("write_doubled", self.path, self.timeout, **arguments)

    def variant(self, path: str) -> "ChildProgram":
        """Return the same program read from another file that :meth:`doubled` wrote."""
        other = copy.copy(self)
        other.path = Path(path)
        return other

    def _ask(self, task: str, **arguments: object) -> Any:  # noqa: ANN401
        place = {"path": str(self.path.absolute()), "method": self.method, **self._place}
        return CHILD.ask(task, self.subject, self.timeout, **place, **arguments)

    def _signature(self) -> MethodSpec:
        contents = check_undescribed(self.path, self.timeout, has_data=self._place["data"] is not None)
        found = contents["methods"]
        one = {each["name"]: each for each in found}.get(self.method)
        if one is None:
            names = ", ".join(each["name"] for each in found)
            raise ExportError(f"{self.path} has no method {self.method!r}: its methods are {names}")
        return MethodSpec(self._specs("input", one["inputs"]), self._specs("output", one["outputs"]))

    def _specs(self, kind: str, values: Sequence[Mapping[str, Any]]) -> tuple[TensorSpec, ...]:
        names = [kind] if len(values) == 1 else [f"{kind}_{index}" for index in range(len(values))]
        for name, value in zip(names, values, strict=True):
            if value.get("dtype") not in DTYPES:
                raise ExportError(
                    f"method {self.method!r} of {self.path}: {name} is no plain tensor but"
                    f" {value.get('kind') or value.get('dtype')}: call it through executorch.runtime"
                )
        return tuple(map(_spec, names, values))


def _data(manifest: Mapping[str, Any] | None, path: Path) -> str | None:
    paths = () if manifest is None else data_paths(manifest, path)
    if len(paths) > 1:
        raise ExportError(f"{path} has {len(paths)} .ptd files, and this runtime loads one: export it again")
    return str(paths[0].absolute()) if paths else None


def _spec(name: str, value: Mapping[str, Any]) -> TensorSpec:
    shape = tuple(value["shape"])
    dynamic = {index: (min(1, size), size) for index, size in enumerate(shape)} if value["is_dynamic"] else {}
    return TensorSpec(name, shape, DTYPES[value["dtype"]], dynamic)


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
    return load_manifest(path) if path.with_suffix(".json").exists() else None


def read_contents(path: Path, timeout: float = TIMEOUT, constants: bool = True) -> dict[str, Any]:
    """Return what a .pte holds as plain values; see ``worker/contents.py``. It is read in the other process, not run.

    Raises:
        ExportError: it is none, or damaged.
    """
    return CHILD.ask("contents", path, timeout, path=str(path.absolute()), constants=constants)


def check_undescribed(path: Path, timeout: float = TIMEOUT, *, has_data: bool) -> dict[str, Any]:
    """Return what a .pte without a manifest holds, constants left out, after checking that its weights are there.

    Raises:
        ExportError: it is no .pte, cut off or damaged; or its weights stand in a .ptd file, which ``has_data`` denies.
    """
    found = read_contents(path, timeout, constants=False)
    if found["is_external"] and not has_data:
        names = [path.with_suffix(suffix).name for suffix in (".json", ".ptd")]
        missing = [names[0]] if path.with_suffix(".ptd").is_file() else names
        raise ExportError(
            f"{path} keeps its weights in a .ptd file, and the manifest that names it, {names[0]}, is missing: copy"
            f" {' and '.join(missing)} too"
        )
    return found
