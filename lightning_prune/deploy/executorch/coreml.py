"""coremltools and ExecuTorch's part for Core ML from inside: passes, partitioner, and the models in a file.

As ExecuTorch 1.4.1 and coremltools 9.0 have them.
"""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lightning_prune.errors import ExportError

_NAMESPACE = "lightning_prune"
_PACKAGE = Path("lowered_module", "model.mlpackage")


def registered_pass(name: str, compression: str, config: Any, joint: bool) -> str:  # noqa: ANN401
    """Register a compression of weights as a pass without options, if it is not, and return the pass's full name.

    Names are all that ExecuTorch hands on to Core ML, and coremltools' own passes ask for a configuration. They stand
    in no public place: https://github.com/apple/coremltools/blob/9.0/coremltools/optimize/coreml/_quantization_passes.py#L231

    Args:
        name: of the pass.
        compression: class of coremltools that it is made of, such as ``prune_weights``.
        config: for every weight, such as ``OpPalettizerConfig(nbits=4)``.
        joint: whether it compresses further what another pass has compressed.
    """
    import coremltools.optimize.coreml as cto
    from coremltools.converters.mil.mil.passes.pass_registry import PASS_REGISTRY, register_pass
    from coremltools.optimize.coreml import _quantization_passes

    full = f"{_NAMESPACE}::{name}"
    if full not in PASS_REGISTRY:

        @register_pass(namespace=_NAMESPACE, name=name)
        class Configured(getattr(_quantization_passes, compression)):  # pyright: ignore[reportUnusedClass]
            def __init__(self) -> None:
                super().__init__(cto.OptimizationConfig(global_config=config))
                self.joint_compression = joint

    return full


def fitting_partitioner(specs: Sequence[Any]) -> Any:  # noqa: ANN401
    """Return ExecuTorch's CoreMLPartitioner, which leaves outside what reads or writes a type that Core ML has not.

    Such as the conversion of a uint8 image to float32, on which coremltools fails with the name of the type. Which
    operators are taken is asked of a private class, and ``partition`` makes it by itself:
    https://github.com/pytorch/executorch/blob/v1.4.1/backends/apple/coreml/partition/coreml_partitioner.py#L94

    Args:
        specs: what ``CoreMLBackend.generate_compile_specs`` returns.

    Raises:
        ImportError: coremltools is not installed.
    """
    from coremltools.converters.mil.frontend.torch.utils import TORCH_DTYPE_TO_MIL_DTYPE
    from executorch.backends.apple.coreml.partition import CoreMLPartitioner
    from executorch.backends.apple.coreml.partition import coreml_partitioner as original
    from executorch.exir.backend.partitioner import PartitionResult
    from executorch.exir.backend.utils import tag_constant_data, tag_mutated_buffer
    from torch import Tensor
    from torch.export import ExportedProgram
    from torch.fx import Node
    from torch.fx.passes.infra.partitioner import CapabilityBasedPartitioner
    from torch.utils import _pytree as pytree

    class Taken(original._OperatorsSupportedForCoreMLBackend):
        def is_node_supported(self, submodules: Any, node: Node) -> bool:  # noqa: ANN401
            values = pytree.tree_leaves([n.meta.get("val") for n in (node, *node.all_input_nodes)])
            has_types = all(x.dtype in TORCH_DTYPE_TO_MIL_DTYPE for x in values if isinstance(x, Tensor))
            return has_types and super().is_node_supported(submodules, node)

    class FittingPartitioner(CoreMLPartitioner):
        def partition(self, exported_program: ExportedProgram) -> PartitionResult:
            graph, tags = exported_program.graph_module, {}
            proposed = CapabilityBasedPartitioner(graph, Taken(), allows_single_node_partition=True)
            for part in proposed.propose_partitions():
                tags[f"tag{part.id}"] = self.delegation_spec
                for node in part.nodes:
                    node.meta["delegation_tag"] = f"tag{part.id}"
            tag_constant_data(exported_program)
            tag_mutated_buffer(exported_program)
            return PartitionResult(tagged_exported_program=exported_program, partition_tags=tags)

    return FittingPartitioner(compile_specs=list(specs))


def models_in(path: Path) -> Iterator[Any]:
    """Yield the Core ML models in a .pte, each good until the next one is asked for.

    Only private functions read a .pte and unpack what ExecuTorch packed into it:
    https://github.com/pytorch/executorch/blob/v1.4.1/exir/_serialize/_program.py#L741

    Raises:
        ExportError: there is none.
    """
    import coremltools as ct
    from executorch.backends.apple.coreml import executorchcoreml
    from executorch.exir._serialize._program import deserialize_pte_binary

    program = deserialize_pte_binary(path.read_bytes()).program
    delegates = [delegate for plan in program.execution_plan for delegate in plan.delegates]
    indices = sorted({delegate.processed.index for delegate in delegates if delegate.id == "CoreMLBackend"})
    if not indices:
        raise ExportError(f"{path} holds no Core ML model: export with backend=CoreML()")
    with tempfile.TemporaryDirectory() as folder:
        for index in indices:
            (place := Path(folder, str(index))).mkdir()
            packed = bytes(program.backend_delegate_data[index].data)
            if not executorchcoreml.unflatten_directory_contents(packed, str(place)):
                raise ExportError(f"{path}: its Core ML model cannot be unpacked; export it again")
            yield ct.models.MLModel(str(place / _PACKAGE), skip_model_load=True)
