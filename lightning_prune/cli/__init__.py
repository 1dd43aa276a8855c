"""The same functions from a shell: ``lightning-prune --help``."""

from lightning_prune.cli.main import main

__all__ = ["main"]
