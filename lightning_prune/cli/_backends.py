"""From the options of ``export`` to a backend."""

import argparse
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from lightning_prune.cli.references import made

if TYPE_CHECKING:
    from lightning_prune.deploy import Backend

HELP = "xnnpack (default), coreml, vulkan, portable, or a reference of a backend of your own"

_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "xnnpack": ("int8", "int8_dynamic", "int4_groupwise"),
    "coreml": ("deployment_target", "sparse_weights"),
    "vulkan": ("half",),
    "portable": (),
}


def chosen_backend(arguments: argparse.Namespace) -> "Backend":
    """Return the backend that the options of ``export`` describe.

    Raises:
        ValueError: there is no such backend, or an option is not its own.
    """
    from lightning_prune.data.batches import DataModule, loader_of
    from lightning_prune.deploy import XNNPACK, Backend, CoreML, Int4Groupwise, Int8, Int8Dynamic, Portable, Vulkan

    name = arguments.backend
    if ":" not in name and name not in _OPTIONS:
        raise ValueError(f"--backend: got {name!r}, must be {HELP}, as in file.py:backend")
    every = dict.fromkeys(option for options in _OPTIONS.values() for option in options)
    given = [option for option in every if getattr(arguments, option)]
    for option in given:
        if option not in _OPTIONS.get(name, ()):
            owners = ", ".join(backend for backend, options in _OPTIONS.items() if option in options)
            raise ValueError(f"--{option.replace('_', '-')} is an option of {owners}, not of {name}")
    if ":" in name:
        return made(name, Backend)
    if name == "coreml":
        target = {"deployment_target": arguments.deployment_target} if arguments.deployment_target else {}
        return CoreML(sparse_weights=arguments.sparse_weights, **target)
    if name == "vulkan":
        return Vulkan(half=arguments.half)
    if name == "portable":
        return Portable()
    if arguments.int8:
        return XNNPACK(quantization=Int8(calibration=loader_of(made(arguments.int8, (Iterable, DataModule)))))
    if arguments.int8_dynamic:
        return XNNPACK(quantization=Int8Dynamic())
    return XNNPACK(quantization=Int4Groupwise() if arguments.int4_groupwise else None)
