"""What torch.export stops at though it decides nothing: checks of values, and torch's guess at a causal mask."""

import dis
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from torch import Tensor
from torch.nn.modules import transformer
from torch.overrides import TorchFunctionMode

_STRAIGHT = 120
"""Instructions after which a branch is no longer taken for one that only raises: a long message has some thirty."""


@contextmanager
def recordable() -> Iterator[None]:
    """Let torch.export record a forward that checks its values, or that hands a mask to torch's transformer layers.

    ``assert lengths.min() > 0`` and ``if not valid.all(): raise`` ask for a value, which there is none of while
    tracing. The check is taken as passed: it passes on the example, or the model would not run on it, and the program
    that is recorded has no check.
    """

    def stated(mask: Tensor | None, is_causal: bool | None = None, size: int | None = None) -> bool:
        return bool(is_causal)

    guess = transformer._detect_is_causal_mask
    # torch 2.13 compares the mask with a causal one, for a hint; the mask itself is applied either way
    transformer._detect_is_causal_mask = stated
    try:
        with _ChecksPass():
            yield
    finally:
        transformer._detect_is_causal_mask = guess


class _ChecksPass(TorchFunctionMode):
    """Answers ``bool(tensor)`` where one answer would only raise."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        if func is Tensor.__bool__:
            frame = sys._getframe(1)
            while frame.f_back is not None and frame.f_code.co_name == "__torch_function__":  # another mode's
                frame = frame.f_back
            answer = passing(frame)
            if answer is not None:
                return answer
        return func(*args, **(kwargs or {}))


def passing(frame: FrameType) -> bool | None:
    """Return the answer at which the condition where a frame stands does not raise; None where neither only raises."""
    padding = ("CACHE", "EXTENDED_ARG", "NOT_TAKEN")
    code = [instruction for instruction in dis.get_instructions(frame.f_code) if instruction.opname not in padding]
    at = {instruction.offset: number for number, instruction in enumerate(code)}
    here = at.get(frame.f_lasti)
    if here is not None and code[here].opname == "TO_BOOL":  # Python 3.13 asks for the value before it jumps
        here += 1
    if here is None or "JUMP" not in code[here].opname or not code[here].opname.endswith(("IF_TRUE", "IF_FALSE")):
        return None
    on_jump = code[here].opname.endswith("IF_TRUE")
    if _only_raises(code[here + 1 :]):
        return on_jump
    return not on_jump if _only_raises(code[at[code[here].argval] :]) else None


def _only_raises(instructions: Sequence[dis.Instruction]) -> bool:
    """Whether a straight line of instructions ends in an exception."""
    for instruction in instructions[:_STRAIGHT]:
        if instruction.opname == "RAISE_VARARGS":
            return True
        if "JUMP" in instruction.opname or instruction.opname.startswith(("RETURN", "STORE", "YIELD", "FOR_ITER")):
            return False
    return False
