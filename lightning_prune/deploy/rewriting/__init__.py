"""Plain replacements in a traced graph, so that a backend takes what would needlessly stay outside."""

from lightning_prune.deploy.rewriting.constants import apart
from lightning_prune.deploy.rewriting.editing import Editor, Rewrite, Rule, by_operator
from lightning_prune.deploy.rewriting.functional import with_own_values
from lightning_prune.deploy.rewriting.sets import DEFAULT, FOR_COREML, FOR_VULKAN, FOR_XNNPACK, rewritten

__all__ = [
    "DEFAULT",
    "FOR_COREML",
    "FOR_VULKAN",
    "FOR_XNNPACK",
    "Editor",
    "Rewrite",
    "Rule",
    "apart",
    "by_operator",
    "rewritten",
    "with_own_values",
]
