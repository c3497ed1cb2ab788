"""The site: the notebooks, docs/ and the docstrings as pages, by Sphinx and MyST-NB. ``python docs/build_site.py``.

The source folder is the repository's root, so that every link between notebooks, docs and README holds here as it
holds in JupyterLab and on the page of the repository. Nothing is executed: what is shown is what is stored.

Not Jupyter Book 2, which would be the newer way: it fetches its theme when it builds, its pages do not open from disk,
and it makes no reference from docstrings.
"""

import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS.parent), str(DOCS), str(DOCS / "_ext")]

from set_address import address  # noqa: E402
from tplab_source import linkcode_resolve  # noqa: E402, F401  # Sphinx asks for it by its name

import tplab  # noqa: E402

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
    "tplab_measured",
    "tplab_notebooks",
    "tplab_pictures",
    "tplab_source",
]

nb_execution_mode = "off"
myst_enable_extensions = ["attrs_block", "attrs_inline", "colon_fence"]
myst_heading_anchors = 4

# Names of tplab lead somewhere; those of other packages are not looked up, since nothing is fetched.
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!tplab\.).*")]
autodoc_class_signature = "mixed"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
maximum_signature_line_length = 88
napoleon_numpy_docstring = False
python_use_unqualified_type_names = True
smartquotes = False  # it makes one dash of --gpus
toc_object_entries_show_parents = "hide"

linkcheck_anchors = False  # many pages make theirs by JavaScript
linkcheck_retries = 3
linkcheck_timeout = 20

html_theme = "sphinx_book_theme"
html_title = "tplab"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_context = {"default_mode": "auto"}
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
pygments_style = "default"
html_theme_options = {
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "use_download_button": False,  # of the page's source; notebooks have their own below the title
    "use_fullscreen_button": False,
    "navbar_start": [],  # the sidebar has all of it
    "navbar_center": [],
    "navbar_end": [],
    "navbar_persistent": [],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
if slug := address():
    html_theme_options |= {"repository_url": f"https://github.com/{slug}", "use_repository_button": True}
