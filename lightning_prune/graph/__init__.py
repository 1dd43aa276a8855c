"""Which channels shrink together: ``channel_groups`` reads it off the graph that torch.export records."""

from lightning_prune.graph._scales import Scale
from lightning_prune.graph.groups import ChannelGroup, ChannelGroups, Member, channel_groups
from lightning_prune.graph.rules.table import add_rule

__all__ = ["ChannelGroup", "ChannelGroups", "Member", "Scale", "add_rule", "channel_groups"]
