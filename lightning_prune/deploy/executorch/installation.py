"""ExecuTorch's Python package: whether it is there, and its modules without their noise."""

import importlib
import importlib.util
from types import ModuleType

import torch

from lightning_prune.deploy.executorch.quiet import quiet_import


def require_executorch() -> None:
    """Check that ExecuTorch is installed, without importing it.

    Raises:
        ImportError: it is not.
    """
    try:
        found = importlib.util.find_spec("executorch") is not None
    except ValueError:
        found = False
    if not found:
        raise ImportError("ExecuTorch is not installed: pip install 'lightning-prune[mobile]'")


def imported(module: str) -> ModuleType:
    """Import a module of ExecuTorch without its noise.

    Raises:
        ImportError: not installed, or it does not load beside this torch.
    """
    require_executorch()
    try:
        with quiet_import():
            return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{module} does not load beside torch {torch.__version__} ({error}): pip install 'lightning-prune[mobile]'"
        ) from error
