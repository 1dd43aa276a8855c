"""Another way out, verified the same way: an ONNX file that ONNX Runtime was seen to run as the model does."""

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_prune.deploy.artifact.files import writing
from lightning_prune.deploy.checking.cases import cases
from lightning_prune.deploy.checking.comparison import TOLERANCE, Bounds, OutputError
from lightning_prune.deploy.checking.verification import compare_with
from lightning_prune.deploy.executorch.origins import first_line, origin
from lightning_prune.deploy.executorch.quiet import quiet_lowering
from lightning_prune.deploy.interrupts import interruptible
from lightning_prune.deploy.program.arguments import check_model, program_path
from lightning_prune.deploy.program.eager import folded_copy, isolated
from lightning_prune.deploy.program.methods import Method, entry_points
from lightning_prune.documents import beside, check_place, sweep, synced
from lightning_prune.errors import ExportError, PruningError
from lightning_prune.model.example import Inputs

_NEEDED = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class OnnxArtifact:
    """An ONNX file that was run and found to compute what the model computes.

    Args:
        path: of the file.
        size_bytes: of it.
        outputs: how far each output is from the eager model's.
    """

    path: Path
    size_bytes: int
    outputs: Mapping[str, OutputError]

    @property
    def max_abs_error(self) -> float:
        """Largest absolute difference of any output from the eager model."""
        return max(error.max_abs_error for error in self.outputs.values())


def export_onnx(
    model: nn.Module,
    path: str | Path,
    *,
    example_inputs: Inputs | None = None,
    tolerance: float = TOLERANCE,
) -> OnnxArtifact:
    """Write an ONNX file, after ONNX Runtime ran it on a CPU and gave what the model gives.

    A copy of the model is put into eval mode with its masks folded. The file takes the shapes of the example and is
    compared on it and on random inputs; it takes its name only then.

    Args:
        model: any module, masked, pruned or dense; left as it is.
        path: of the .onnx, in a folder that exists.
        example_inputs: as to :func:`~lightning_prune.deploy.export`.
        tolerance: largest absolute difference of any output that is accepted.

    Raises:
        ValueError: the path does not end in .onnx, or there is no example.
        TypeError: an argument is of another type.
        ExportError: the model cannot be traced or converted, or the file cannot be written or run.
        VerificationError: the file does not compute what the model computes.
        ImportError: onnx, onnxscript or onnxruntime is not installed.

    Example:
        >>> artifact = export_onnx(model, "net.onnx", example_inputs=x)  # doctest: +SKIP
        >>> artifact.max_abs_error  # doctest: +SKIP
        4.76837158203125e-07
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"{', '.join(missing)}: not installed, needed for ONNX: pip install 'lightning-prune[onnx]'")
    check_model(model)
    path, bounds = program_path(path, suffix=".onnx"), Bounds(tolerance)
    check_place(path)
    sweep(path.parent)
    temporary = beside(path)
    with interruptible(), isolated():
        (entry,) = entry_points(model, folded_copy(model), {"forward": Method("forward", example_inputs)})
        names = [one.name for one in entry.spec.outputs]
        try:
            with quiet_lowering():
                written = torch.onnx.export(
                    entry.eager.eval(),
                    entry.inputs,
                    dynamo=True,
                    verbose=False,
                    input_names=entry.names,
                    output_names=names,
                )
            with writing(path):
                written.save(temporary, external_data=False)  # type: ignore[union-attr]
            runtime = importlib.import_module("onnxruntime")
            session = runtime.InferenceSession(str(temporary), providers=["CPUExecutionProvider"])
            taken = {each.name for each in session.get_inputs()}  # what nothing reads is none

            def run(*inputs: Tensor) -> Sequence[Tensor]:
                named = zip(entry.names, inputs, strict=True)
                given = {name: x.contiguous().numpy() for name, x in named if name in taken}
                return [torch.as_tensor(y) for y in session.run(names, given)]

            compared, _ = cases(entry.eager, entry.inputs, {})
            errors, _ = compare_with(run, entry.eager.run, compared, entry.spec, bounds)
            size = temporary.stat().st_size
            with writing(path):
                synced(temporary)
                temporary.replace(path)
        except (PruningError, ImportError):
            raise
        except Exception as error:
            raise ExportError(
                f"{entry.eager} cannot become ONNX{origin(error)}: {first_line(error)}; write this with other operators"
            ) from error
        finally:
            temporary.unlink(missing_ok=True)
    return OnnxArtifact(path, size, errors)
