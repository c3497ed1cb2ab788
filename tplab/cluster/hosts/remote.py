"""The functions that a kernel calls on hosts by name (``connect.call_on``)."""

from tplab.cluster.hosts.agent import open_agent, remembered
from tplab.cluster.hosts.facts import describe
from tplab.cluster.hosts.networks import look
from tplab.cluster.hosts.reach import close_door, knock, open_door

__all__ = ["close_door", "describe", "knock", "look", "open_agent", "open_door", "remembered"]
