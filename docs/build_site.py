"""Build the site: ``python docs/build_site.py [OUT]``, by default into ``docs/_build/site``. A warning is an error.

Nothing is executed and nothing fetched; pages open from disk: ``OUT/index.html``.
"""

import sys
from pathlib import Path

from sphinx.cmd.build import main as sphinx

DOCS = Path(__file__).resolve().parent
FORWARD = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>tplab</title>
<meta http-equiv="refresh" content="0; url=docs/index.html"><link rel="canonical" href="docs/index.html"></head>
<body><a href="docs/index.html">tplab</a></body></html>
"""


def build(out: Path, *options: str) -> int:
    """Builds into ``out`` what it has not, and pages whose own source or docstrings changed; the exit status of Sphinx.

    ``options`` are further ones of sphinx-build: ``-E`` where claims, recordings or an extension changed.
    """
    trees = out.with_name(f"{out.name}.doctrees")  # what it keeps for the next time, and nobody should publish
    status = sphinx(["-W", "--keep-going", "-c", str(DOCS), "-d", str(trees), *options, str(DOCS.parent), str(out)])
    if status == 0:
        (out / "index.html").write_text(FORWARD, "utf-8")
        (out / ".nojekyll").touch()  # GitHub Pages would leave out what begins with an underscore
    return status


if __name__ == "__main__":
    sys.exit(build(Path(sys.argv[1] if len(sys.argv) > 1 else DOCS / "_build" / "site").absolute()))
