"""The ``tplab`` command: thin, calls the rooms."""

from tplab.cli.command import main

__all__ = ["main"]
