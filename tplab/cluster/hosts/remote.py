"""The functions that a kernel calls on hosts by name (``connect.call_on``); this is all that they import for it."""

from tplab.cluster.hosts.facts import describe

__all__ = ["describe"]
