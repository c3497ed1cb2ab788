"""The site: the notebooks, docs/ and the docstrings as pages, by Sphinx and MyST-NB. ``python docs/build_site.py``.

The source folder is the repository's root, so that every link between notebooks, docs and README holds here as it
holds in JupyterLab and on the page of the repository. Nothing is executed: what is shown is what is stored.
"""

import sys
from pathlib import Path

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path[:0] = [str(ROOT), str(DOCS), str(DOCS / "_ext")]

import tplab  # noqa: E402
from tplab_source import linkcode_resolve  # noqa: E402, F401  # Sphinx asks for it by name

project = "tplab"
author = "the tplab authors"
copyright = "the tplab authors, Apache License 2.0"
version = release = tplab.__version__

root_doc = "docs/index"
include_patterns = ["*.md", "docs/*.md", "docs/api/*.md", "notebooks/*.md", "notebooks/*.ipynb"]
exclude_patterns = ["**/.*", "tplab", "tests", "binder", "etc", "share"]
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.linkcode",
    "tplab_api",
    "tplab_claims",
    "tplab_notebooks",
    "tplab_source",
]

nb_execution_mode = "off"
myst_enable_extensions = ["attrs_block", "attrs_inline"]
myst_heading_anchors = 4

# Names of tplab lead somewhere; those of other packages are not looked up, since nothing is fetched.
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!tplab\.).*")]

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
toc_object_entries_show_parents = "hide"

html_theme = "sphinx_book_theme"
html_title = "tplab"
html_static_path = ["_static"]
html_show_sourcelink = False
