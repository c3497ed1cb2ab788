"""The functions that a kernel calls on hosts by name (``connect.call_on``)."""

from tplab.cluster.hosts.agent import open_agent, remembered
from tplab.cluster.hosts.facts import describe
from tplab.cluster.hosts.networks import look
from tplab.cluster.hosts.reach import close_door, knock, open_door
from tplab.cluster.hosts.survey import (
    built_with,
    capacity,
    clock,
    leave_token,
    limits,
    nccl_view,
    own_name,
    read_token,
    remove_token,
    scheduler,
)

__all__ = [
    "built_with",
    "capacity",
    "clock",
    "close_door",
    "describe",
    "knock",
    "leave_token",
    "limits",
    "look",
    "nccl_view",
    "open_agent",
    "open_door",
    "own_name",
    "read_token",
    "remembered",
    "remove_token",
    "scheduler",
]
