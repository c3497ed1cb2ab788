"""What a wheel has beside the package: the notebooks and the pages that they link to.

They lie in the clone's own folders, where people read them; :func:`tplab.lab.shipped.shipped_files`, which looks for
them in an installation, says here which files they are and where they go. Not a list in pyproject.toml, which would be
a second one; and an installation from a clone (``pip install -e``), which reads the clone's, gets none.
"""

import sys
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ShippedFiles(BuildHookInterface[Any]):
    """Called by hatchling before it writes a wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the files to a wheel; to none that only leads to a clone."""
        if version != "standard":
            return
        sys.path.insert(0, self.root)
        from tplab.lab.shipped import shipped_files

        for name, path in shipped_files().items():
            if not name.startswith("tplab/"):
                build_data["force_include"][str(path)] = f"tplab/lab/shipped/{name}"
