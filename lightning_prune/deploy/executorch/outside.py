"""Operators that a backend fails on or takes wrongly: found, kept from its partitioners, left to portable kernels."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

from lightning_prune.deploy.checking.comparison import DiffersError
from lightning_prune.deploy.executorch.quiet import quiet_import
from lightning_prune.errors import ExportError, PruningError

T = TypeVar("T")
_MOST = 4
"""Operators that are left out one after the other, as the lowering names them."""


class BackendError(ExportError):
    """A backend fails on what it was given.

    Args:
        message: for the user.
        operator: on which, as in ``aten::slice_copy.Tensor``; empty where that is not known.
    """

    def __init__(self, message: str, operator: str = "") -> None:
        super().__init__(message)
        self.operator = operator


def left_out_where_needed(
    attempt: Callable[[Mapping[str, str]], T], taken: Callable[[], Collection[str]], can_repeat: bool
) -> T:
    """Return what an attempt returns, with as few operators left to portable kernels as it takes.

    What the lowering names goes first. Where a program fails or is wrong when it runs, nothing is named: if it is right
    with all operators on portable kernels, halves of them are tried until one is left.

    Args:
        attempt: lowers, writes and runs the program, these operators kept from the backend: name -> why.
        taken: names of the operators that the backend took in the last attempt.
        can_repeat: whether an attempt may be made again.

    Raises:
        BackendError: it fails, and no single operator is the reason; the first error.
        DiffersError: it is wrong, and no single operator is the reason; the first error.
    """

    def works(names: Sequence[str]) -> bool:
        try:
            attempt(outside | dict.fromkeys(names, ""))
        except PruningError:
            return False
        return True

    outside = dict[str, str]()
    try:
        while True:
            try:
                return attempt(outside)
            except BackendError as error:
                if not (can_repeat and error.operator) or error.operator in outside or len(outside) == _MOST:
                    raise
                outside[error.operator] = str(error)
    except (BackendError, DiffersError) as error:
        suspects = sorted(set(taken()) - outside.keys())
        if not can_repeat or not suspects or not works(suspects):
            raise
        while len(suspects) > 1:
            half = suspects[: len(suspects) // 2]
            suspects = half if works(half) else suspects[len(suspects) // 2 :]
        try:
            return attempt(outside | {suspects[0]: str(error)})
        except PruningError:
            raise error from None


def kept_from(partitioners: Sequence[Any], names: Collection[str]) -> list[Any]:
    """Return partitioners that do not see operators of these names; the same ones where there are none."""
    if not names:
        return list(partitioners)
    with quiet_import():
        from executorch.exir.backend.partitioner import Partitioner, PartitionResult

    # ExecuTorch 1.4.1: Core ML's partitioner takes such a list (skip_ops_for_coreml_delegation), Vulkan's a blocklist,
    # XNNPACK's neither; an argument that all of them take would let this go
    def unseen(*_: object) -> None:
        """Stands for an operator that no partitioner knows."""

    class Keeping(Partitioner):
        def __init__(self, inner: Any) -> None:  # noqa: ANN401
            super().__init__()
            self.inner = inner

        def partition(self, exported_program: Any) -> PartitionResult:  # noqa: ANN401
            nodes = exported_program.graph.nodes
            hidden = {node: node.target for node in nodes if operator_name(node.target) in names}
            for node in hidden:
                node.target = unseen
            try:
                return self.inner.partition(exported_program)
            finally:
                for node, target in hidden.items():
                    node.target = target

        def ops_to_not_decompose(self, ep: Any) -> Any:  # noqa: ANN401
            operators, is_wanted = self.inner.ops_to_not_decompose(ep)
            return [one for one in operators if operator_name(one) not in names], is_wanted

    return [Keeping(partitioner) for partitioner in partitioners]


def operator_name(target: Any) -> str:  # noqa: ANN401
    """Return the name of an operator, as in ``aten::slice_copy.Tensor``; empty for anything else that a node calls."""
    named = getattr(target, "name", None)
    return str(named()) if callable(named) else ""


def taken_by_backend(program: Any) -> set[str]:  # noqa: ANN401
    """Return the names of the operators inside the delegates of a lowered program."""
    delegates = [m for m in program.graph_module.modules() if type(m).__name__ == "LoweredBackendModule"]
    nodes = (node for delegate in delegates for node in delegate.original_module.graph.nodes)
    return {name for node in nodes if node.op == "call_function" and (name := operator_name(node.target))}
