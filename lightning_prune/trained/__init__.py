"""A trained model, pruned without a Trainer."""

from lightning_prune.trained.prune import Pruned, prune

__all__ = ["Pruned", "prune"]
