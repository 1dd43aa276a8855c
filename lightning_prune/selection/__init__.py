"""Which units go: scores + shares + granularity + channel groups -> boolean masks; pure tensor maths.

Two kinds of units have the same four questions to answer (:class:`Units`): those inside one target
(:class:`ElementUnits`) and channels, which span layers (:class:`ChannelUnits`).
"""

from lightning_prune.selection.channels import ChannelUnits
from lightning_prune.selection.counts import apportion, finite, keep_highest
from lightning_prune.selection.elements import ElementUnits
from lightning_prune.selection.units import ALL, Masks, Units

__all__ = ["ALL", "ChannelUnits", "ElementUnits", "Masks", "Units", "apportion", "finite", "keep_highest"]
