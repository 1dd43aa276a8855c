"""Variants of a .pte in which every call of one operator stands twice: what they take longer is that operator's time.

A call may be repeated, as its outputs lie elsewhere than its inputs.
"""

import copy
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lightning_prune.deploy.executorch.pte_file import read


def write_doubled(path: str, method: str, folder: str) -> list[dict[str, object]]:
    """Write the file once as it is, and once for each operator and delegate of a method with its calls doubled.

    Args:
        path: of the .pte.
        method: whose calls are doubled.
        folder: where the files are written.

    Returns:
        ``{"file", "name", "is_delegate", "calls"}``; the first one has no name and is the file as it is.

    Raises:
        RefusedError: it is no .pte; anything at all for a damaged one.
    """
    file = read(path)
    index = [plan.name for plan in file.program.execution_plan].index(method)
    written: list[dict[str, object]] = []
    for number, (name, is_delegate, chosen) in enumerate(_variants(file.program.execution_plan[index])):
        program = copy.deepcopy(file.program)
        calls = sum(_double(chain, chosen) for chain in program.execution_plan[index].chains)
        target = Path(folder, f"{number}.pte")
        target.write_bytes(file.with_program(program))
        written.append({"file": str(target), "name": name, "is_delegate": is_delegate, "calls": calls})
    return written


def _variants(plan: Any) -> Iterator[tuple[str, bool, "_Calls"]]:  # noqa: ANN401
    """Yield name, whether it is a delegate, and which calls are meant; first none of them."""
    yield "", False, _Calls("", ())
    names = [f"{operator.name}.{operator.overload}".rstrip(".") for operator in plan.operators]
    for name in dict.fromkeys(names):
        yield name, False, _Calls("op_index", [i for i, one in enumerate(names) if one == name])
    backends = [delegate.id for delegate in plan.delegates]
    for index, backend in enumerate(backends):
        label = backend if backends.count(backend) == 1 else f"{backend} {index}"
        yield label, True, _Calls("delegate_index", [index])


class _Calls:
    def __init__(self, field: str, indices: Iterable[int]) -> None:
        self._field, self._indices = field, set(indices)

    def __contains__(self, call: Any) -> bool:  # noqa: ANN401
        return vars(call).get(self._field) in self._indices


def _double(chain: Any, chosen: _Calls) -> int:  # noqa: ANN401
    """Let the chosen calls stand twice and jumps go where they went; return how many there were."""
    instructions, starts = [], []
    for instruction in chain.instructions:
        starts.append(len(instructions))
        instructions += [instruction] * (2 if instruction.instr_args in chosen else 1)
    starts.append(len(instructions))
    for instruction in chain.instructions:
        if type(instruction.instr_args).__name__ == "JumpFalseCall":
            jump = instruction.instr_args
            jump.destination_instruction = starts[jump.destination_instruction]
    doubled = len(instructions) - len(chain.instructions)
    chain.instructions = instructions
    return doubled
