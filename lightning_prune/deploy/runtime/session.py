"""Calls of a program in a row, as an app makes them: what is for the next call goes into it."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from lightning_prune.deploy.program.feeds import Feeding
from lightning_prune.deploy.program.signature import MethodSpec, describe, takes
from lightning_prune.deploy.program.structure import flat_inputs
from lightning_prune.errors import SessionError


class Session:
    """Calls of a program in a row; ``RuntimeModel.session()`` makes one, and the apps have the same.

    A call that is refused or fails changes nothing: the next one goes on from the one before. Only what the program
    keeps in itself may be half written then, and such a session asks for :meth:`reset` first.

    Args:
        run: takes all inputs of the program and returns all of its outputs.
        spec: what it takes and gives.
        restart: lets what the program keeps in itself be what it was at first.
        keeps: names of that.
    """

    def __init__(
        self,
        run: Callable[..., Sequence[Tensor]],
        spec: MethodSpec,
        restart: Callable[[], None] = lambda: None,
        keeps: Sequence[str] = (),
    ) -> None:
        self._run, self._spec, self._restart, self._keeps = run, spec, restart, tuple(keeps)
        self._feeding = Feeding.of(spec)
        self._busy, self._is_lost = threading.Lock(), False
        self._fed = self._begun({})

    @property
    def state(self) -> dict[str, Tensor]:
        """What the next call takes from the ones before, by the name of the input; :meth:`reset` goes on from it."""
        return {self._spec.inputs[place].name: x.clone() for place, x in self._fed.items()}

    def step(self, *inputs: Any, **named: Any) -> tuple[Tensor, ...]:
        """Make a call.

        Args:
            inputs: those that are not fed, in order.
            named: those that are given by name.

        Returns:
            all outputs.

        Raises:
            ValueError: their number, a shape or a dtype is another.
            SessionError: another thread is in a call, or what the program keeps is lost.
            ExportError: the program fails.
        """
        own = {place: one for place, one in enumerate(self._spec.inputs) if place not in self._feeding.sources}
        tensors = flat_inputs([one.name for one in own.values()], inputs, named)
        if not takes(list(own.values()), tensors):
            wanted = ", ".join(map(str, own.values())) or "no input"
            raise ValueError(f"a step takes {wanted}; got {describe(tensors) or 'nothing'}")
        prepared = [x.detach().cpu().contiguous() for x in tensors]
        with self._alone():
            if self._is_lost:
                raise SessionError(
                    f"the call before failed, and what the program keeps ({', '.join(self._keeps)}) is lost: reset()"
                    " begins anew"
                )
            call = self._fed | dict(zip(own, prepared, strict=True))
            try:
                outputs = tuple(self._run(*(call[place] for place in range(len(call)))))
            except BaseException:
                self._is_lost = bool(self._keeps)
                raise
            self._fed = {place: outputs[source] for place, source in self._feeding.sources.items()}
            return outputs

    def reset(self, first: Mapping[str, Tensor] | None = None) -> None:
        """Begin anew.

        Args:
            first: fed input -> what it begins with, such as an earlier :attr:`state`; any other begins as told.

        Raises:
            TypeError: it is no dict.
            ValueError: there is no such input, or it takes another shape or dtype.
            SessionError: another thread is in a call.
        """
        if first is not None and not isinstance(first, Mapping):
            names = ", ".join(f"{feed.input!r}: …" for feed in self._spec.feeds)
            raise TypeError(
                f"reset: got a {type(first).__name__}, must be a dict by the names of the inputs, as in"
                f" reset({{{names}}})"
            )
        fed = self._begun(first or {})
        with self._alone():
            self._restart()
            self._fed, self._is_lost = fed, False

    def _begun(self, first: Mapping[str, Tensor]) -> dict[int, Tensor]:
        places = {self._spec.inputs[place].name: place for place in self._feeding.sources}
        if unknown := [name for name in first if name not in places]:
            raise ValueError(f"there is no fed input {unknown[0]!r}; there is {', '.join(places) or 'none'}")
        fed = self._feeding.firsts(self._spec.inputs)
        for name, x in first.items():
            if not takes([self._spec.inputs[places[name]]], [x]):
                raise ValueError(f"a state is {self._spec.inputs[places[name]]}; got {describe([x])}")
            fed[places[name]] = x.detach().cpu().contiguous().clone()
        return fed

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._busy.acquire(blocking=False):
            raise SessionError(
                "another thread is in a call of this session, and calls have an order: make them from one thread, or"
                " give each its own session"
            )
        try:
            yield
        finally:
            self._busy.release()
