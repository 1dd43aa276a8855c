"""A decoder that writes text: what an app asks its program for, and the calls in a row that it is compared on."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim

from lightning_prune.deploy.program.methods import EntryPoint, Method
from lightning_prune.deploy.program.sequences import Call, Sequences
from lightning_prune.deploy.program.signature import MethodSpec
from lightning_prune.errors import ExportError
from lightning_prune.values import check_whole

_STEPS = 8
"""Tokens that follow the prompt in the sequences that a program is compared on."""


@dataclass(frozen=True)
class Generation:
    """A decoder with a cache, exported as ExecuTorch's runners of text take it.

    Its ``forward(tokens, position)`` takes whole numbers of 64 bits: n tokens in the shape (1, n) and their places in
    the text in the shape (n,), counted from 0. It writes their keys and values into its buffers and returns the logits
    of what follows the last, in the shape (1, 1, vocabulary). The program takes any n up to ``max_length``: a prompt in
    one call, then token by token. It names what runners read as constant methods, and in its manifest.

    Args:
        max_length: places of the cache: how many tokens prompt and answer have together, at most.
        eos: tokens at which an app stops, or the only one.
        bos: token that a text begins with; None: the tokenizer's, if any.

    Raises:
        ValueError: a number is out of its range.
        TypeError: one is no whole number.

    Example:
        >>> calls = Generation(max_length=128, eos=2).calls([5, 6, 7, 8], prompt=3)
        >>> [tuple(tokens.shape) for tokens, _ in calls]
        [(1, 3), (1, 1)]
    """

    max_length: int
    eos: int | Sequence[int]
    bos: int | None = None

    def __post_init__(self) -> None:
        check_whole("Generation.max_length", self.max_length, 2)
        eos = (self.eos,) if isinstance(self.eos, int) else self.eos
        if not isinstance(eos, Sequence) or isinstance(eos, str) or not eos:
            raise TypeError(f"Generation.eos must be a token or a list of tokens, got {self.eos!r:.60}")
        for token in eos:
            check_whole("Generation.eos", token, 0)
        if self.bos is not None:
            check_whole("Generation.bos", self.bos, 0)

    def calls(self, tokens: Sequence[int], prompt: int = 1) -> list[Call]:
        """Return a text as calls in a row: its first tokens in one call, the others one by one.

        ``Sequences([generation.calls(text, 16) for text in texts])`` is what ``verify_on`` and a calibration take.

        Args:
            tokens: of the text, no more than ``max_length``.
            prompt: how many of them come in the first call.

        Raises:
            ValueError: there are too few or too many.
        """
        if not 1 <= prompt <= len(tokens) <= self.max_length:
            raise ValueError(
                f"Generation.calls: {prompt} of {len(tokens)} tokens in the first call; a text has at least one, and at"
                f" most {self.max_length} fit into the cache"
            )
        ends = itertools.pairwise([0, *range(prompt, len(tokens) + 1)])
        return [(torch.tensor([list(tokens[low:high])]), torch.arange(low, high)) for low, high in ends]

    def method(self, given: Method) -> Method:
        """Return ``forward`` with examples and sizes of its own.

        Raises:
            ValueError: examples or sizes are given too.
        """
        for name, value in (("example_inputs", given.example_inputs), ("dynamic_shapes", given.dynamic_shapes)):
            if value is not None:
                raise ValueError(f"{name}: leave it out beside generation=, which says what forward takes")
        inputs = torch.zeros(1, self.max_length, dtype=torch.long), torch.arange(self.max_length)
        n = Dim("n", min=1, max=self.max_length)
        return replace(given, example_inputs=inputs, dynamic_shapes=({1: n}, {0: n}))

    def taken(self, entry: EntryPoint) -> tuple[EntryPoint, dict[str, Any]]:
        """Return ``forward`` with random tokens of its vocabulary in the example, and what runners read of it.

        Raises:
            ExportError: it is no decoder with a cache.
        """
        logits = entry.spec.outputs[0].shape
        if len(entry.spec.outputs) != 1 or logits[:-1] not in ((1,), (1, 1)):
            raise ExportError(
                f"generation: {entry.eager} gives {', '.join(map(str, entry.spec.outputs))} for {self.max_length}"
                " tokens, and runners of text take the logits of what follows the last alone: return logits[:, -1:]"
            )
        if not entry.eager.state:
            raise ExportError(
                f"generation: {entry.eager} keeps nothing from call to call: let forward write keys and values into its"
                " buffers, as in self.keys.index_copy_(2, position, keys); CachedDecoder(model, max_length=…) does so"
                " for a decoder of Hugging Face"
            )
        told = self.constants(logits[-1])
        return replace(entry, inputs=example(told)), told

    def constants(self, vocabulary: int) -> dict[str, Any]:
        """Return what runners of text read: https://github.com/pytorch/executorch/blob/v1.4.1/extension/llm/runner/constants.h."""
        return {
            # below the length of the cache it would mean a window, whose end runners do not see
            "get_max_seq_len": self.max_length,
            "get_max_context_len": self.max_length,
            "get_vocab_size": vocabulary,
            "get_eos_ids": [self.eos] if isinstance(self.eos, int) else list(self.eos),
            **({} if self.bos is None else {"get_bos_id": self.bos}),
            "use_kv_cache": True,
            "use_sdpa_with_kv_cache": False,
            "enable_dynamic_shape": True,
        }


def check_generation(value: object) -> None:
    """Check what says that a model is a decoder that writes text.

    Raises:
        TypeError: it is no :class:`Generation`.
    """
    if value is not None and not isinstance(value, Generation):
        raise TypeError(
            f"generation: got {value!r:.60}, must be a value such as Generation(max_length=128, eos=2): the places of"
            " the cache, and the tokens at which an app stops"
        )


def check_constants(told: Mapping[str, Any], spec: MethodSpec) -> None:
    """Check what a manifest says of a decoder against what ``forward`` takes and gives.

    Args:
        told: as in :func:`example`, by someone else.
        spec: of ``forward``.

    Raises:
        KeyError, TypeError, ValueError: something is missing, of another type, or does not fit.
    """
    for name, least in (("get_max_context_len", 2), ("get_vocab_size", 1)):
        check_whole(name, told[name], least)
    length, vocabulary = told["get_max_context_len"], told["get_vocab_size"]
    Generation(length, list(told["get_eos_ids"]), told.get("get_bos_id"))
    takes = [(each.shape, each.dtype) for each in spec.inputs]
    if takes != [((1, length), torch.int64), ((length,), torch.int64)]:
        raise ValueError(f"generation of up to {length} tokens does not fit {', '.join(map(str, spec.inputs)):.200}")
    if len(spec.outputs) != 1 or spec.outputs[0].shape[-1:] != (vocabulary,):
        raise ValueError(f"generation with {vocabulary} tokens does not fit {', '.join(map(str, spec.outputs)):.200}")


def example(told: Mapping[str, Any]) -> Call:
    """Return a random text that fills the cache, in one call.

    Args:
        told: what a program says of itself: :meth:`Generation.constants`.
    """
    length, generator = told["get_max_context_len"], torch.Generator().manual_seed(0)
    return torch.randint(told["get_vocab_size"], (1, length), generator=generator), torch.arange(length)


def texts(told: Mapping[str, Any]) -> Sequences:
    """Return random texts as calls in a row, which a program is compared on: prompts of one token, of half, of most.

    Args:
        told: as in :func:`example`.
    """
    length, generator = told["get_max_context_len"], torch.Generator().manual_seed(1)
    generation, made = Generation(length, told["get_eos_ids"]), []
    for prompt in dict.fromkeys((1, length // 2, max(1, length - _STEPS))):
        count = min(length, prompt + _STEPS)
        tokens = torch.randint(told["get_vocab_size"], (count,), generator=generator)
        made.append(generation.calls(tokens.tolist(), prompt))
    return Sequences(made)


def check_call(told: Mapping[str, Any], inputs: Sequence[Tensor]) -> None:
    """Check what a call says beyond shapes and types: places that the cache has, and tokens of the vocabulary.

    Args:
        told: as in :func:`example`.
        inputs: tokens and their places.

    Raises:
        ValueError: one is out of its range.
    """
    limits = ("the vocabulary is", told["get_vocab_size"]), ("the cache has places", told["get_max_context_len"])
    for name, x, (what, most) in zip(("tokens", "position"), inputs, limits, strict=True):
        low, high = int(x.min()), int(x.max())
        if not 0 <= low <= high < most:
            raise ValueError(f"{name}: got {low}" + f" to {high}" * (low < high) + f", and {what} 0 to {most - 1}")
