"""The reference: ``{room} tplab.topology`` writes an entry for every public name of a room, from its docstring.

A room's ``__init__`` says what is public (``tplab.lazy``). A name that several rooms offer has its entry in the first
of them, in the order of ``ROOMS``; the others link to it. Not ``automodule``: it would describe such a name in each,
constants without their words, which stand where they are defined, and a room's list of modules is not its markup.
"""

import ast
import importlib
import inspect
from functools import cache
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import make_refnode
from tplab_source import linkcode_resolve

ROOMS = (
    "tplab.cluster",
    "tplab.measure",
    "tplab.collectives",
    "tplab.layers",
    "tplab.pipeline",
    "tplab.models",
    "tplab.topology",
    "tplab.lab.figures",
    "tplab.lab.panels",
    "tplab.lab.pictures",
    "tplab.lab.exercises",
    "tplab.lab.claims",
    "tplab.lab.grading",
    "tplab.lab.recorded",
    "tplab.lab",
    "tplab.cli",
    "tplab",
)
"""Every package with public names; the lab's parts before the lab, which offers some of theirs once more."""
COLON = "\ue000"
"""Stands for a colon while Napoleon reads."""


def public_names(room: str) -> list[str]:
    """The public names of a room."""
    return sorted((name for name in importlib.import_module(room).__all__ if name != "__version__"), key=str.lower)


@cache
def entry_of(room: str, name: str) -> str:
    """The full name under which a public name of a room has its entry."""
    value = getattr(importlib.import_module(room), name)
    home = next(r for r in ROOMS if name in public_names(r) and getattr(importlib.import_module(r), name) is value)
    return f"{home}.{name}"


@cache
def entries() -> dict[str, str]:
    """The entry for every name that a docstring may use: a room's, the defining module's, and without any module where
    only one is meant.
    """
    found: dict[str, str] = {}
    short: dict[str, set[str]] = {}
    for room in ROOMS:
        for name in public_names(room):
            value, entry = getattr(importlib.import_module(room), name), entry_of(room, name)
            found[f"{room}.{name}"] = entry
            short.setdefault(name, set()).add(entry)
            if isinstance(value, type) or inspect.isfunction(value):
                found[f"{value.__module__}.{value.__qualname__}"] = entry
    return found | {name: entry for name, (entry, *others) in short.items() if not others}


class Room(SphinxDirective):
    """``{room} tplab.topology``: what the room is, and an entry for each of its names."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        room = self.arguments[0]
        names = {name: entry_of(room, name) for name in public_names(room)}
        lines = [f".. py:module:: {room}", "", *_words(importlib.import_module(room).__doc__ or ""), ""]
        for name, entry in names.items():
            if entry == f"{room}.{name}":
                lines += [*_entry(room, name), ""]
        elsewhere = [entry for name, entry in names.items() if entry != f"{room}.{name}"]
        if elsewhere:
            lines += [".. rubric:: Also to be had from here", "", ", ".join(f":py:obj:`~{e}`" for e in elsewhere), ""]
        box = nodes.container()
        rst = StringList(["```{eval-rst}", *lines, "```"], source=room)  # as docstrings are, in a page of Markdown
        self.state.nested_parse(rst, self.content_offset, box)
        return list(box.children)


def _words(text: str) -> list[str]:
    """A room's docstring: its sentences as they are, ``module   what is in it`` as a list of definitions."""
    lines: list[str] = []
    for line in text.strip().split("\n"):
        name, gap, words = line.strip().partition("  ")
        if gap and (not line.startswith("      ") or not lines):
            lines += ["", f"``{name}``", f"    {words.strip()}"]
        elif line.startswith("      ") and lines:
            lines.append(f"    {line.strip()}")
        else:
            after_list = bool(lines) and lines[-1].startswith("    ")
            lines += [*([""] if after_list or line.endswith(":") else []), line.strip()]
    return lines


def _entry(room: str, name: str) -> list[str]:
    value = getattr(importlib.import_module(room), name)
    if isinstance(value, type):
        return [f".. autoclass:: {room}.{name}", "   :members:"]
    if callable(value):
        return [f".. autofunction:: {room}.{name}"]
    # autodata looks for the words about a value in the room, and they stand where it is defined.
    words = ModuleAnalyzer.for_module(_home(room, name)).find_attr_docs().get(("", name), ())
    return [f".. py:data:: {name}", "", *(f"   {line}" for line in words)]


def _home(room: str, name: str) -> str:
    """The module that defines a public name which is neither class nor function."""
    tree = ast.parse(Path(importlib.import_module(room).__file__ or "").read_text("utf-8"))
    imports = (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom))
    home = next(str(node.module) for node in imports if name in [alias.name for alias in node.names])
    is_package = hasattr(importlib.import_module(home), "__path__")
    return _home(home, name) if is_package else home


def _is_the_articles(name: str) -> bool:
    room, _, own = entries()[name].rpartition(".")
    return getattr(getattr(importlib.import_module(room), own), "__module__", "").endswith(".article")


def link_names(app: Sphinx, doctree: nodes.document) -> None:
    """A public name in ``code`` of a docstring or a page becomes a link to its entry.

    Pages also speak of things that happen to be called like one: a variable ``place``, the ``main`` of some module, the
    article's own classes. There a name that could be any word is no link, and neither is one of the article's.
    """
    reference = app.env.docname.startswith("docs/api/")
    for literal in list(doctree.findall(nodes.literal)):
        name = literal.astext().removesuffix("()")
        if name not in entries() or isinstance(literal.parent, (addnodes.pending_xref, nodes.reference, nodes.title)):
            continue
        if not reference and "." not in name and ((name.islower() and name.isalpha()) or _is_the_articles(name)):
            continue
        link = addnodes.pending_xref(
            "", refdomain="py", reftype="obj", reftarget=entries()[name], refdoc=app.env.docname, refexplicit=True
        )
        literal.replace_self(link)
        link += literal


def write_tables(app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Tables of a docstring, which are Markdown's, as reStructuredText's."""
    made: list[str] = []
    for line in lines:
        bare = line.strip()
        follows = bool(made) and made[-1].startswith(("   * - ", "     - "))
        if not bare.startswith("|"):
            made += [""] * follows + [line]
        elif bare.strip("|:- "):
            made += [] if follows else ["", ".. list-table::", "   :header-rows: 1", ""]
            cells = [cell.strip() for cell in bare.strip("|").split("|")]
            made += [f"   {'  ' if number else '* '}- {cell}" for number, cell in enumerate(cells)]
    lines[:] = made


def keep_colons(app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Words under a field may have a colon; Napoleon would take what stands before it for a type."""
    if what in ("attribute", "property", "data"):
        lines[:] = [line.replace(":", COLON) for line in lines]


def give_colons_back(app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """After Napoleon."""
    lines[:] = [line.replace(COLON, ":") for line in lines]


def find_entry(app: Sphinx, env: BuildEnvironment, node: Any, text: nodes.Element) -> nodes.Element | None:
    """A reference by another name than the entry's: the defining module's, or another room's. What has no entry, since
    it is not public, is linked to its source.
    """
    target = node.get("reftarget", "")
    if node.get("refdomain") != "py":
        return None
    entry = entries().get(target, target)
    if found := env.domains.python_domain.objects.get(entry):
        return make_refnode(app.builder, node["refdoc"], found.docname, found.node_id, text, entry)
    module, _, name = target.rpartition(".")
    if not module.startswith("tplab.") or not node["refdoc"].startswith("docs/api/"):
        return None
    source = linkcode_resolve("py", {"module": module, "fullname": name})
    if source is None:  # a variable of types, for one
        return text if hasattr(importlib.import_module(module), name) else None
    return nodes.reference("", "", text, refuri=source, internal=True)


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_directive("room", Room)
    app.connect("autodoc-process-docstring", keep_colons, priority=100)
    app.connect("autodoc-process-docstring", give_colons_back, priority=900)
    app.connect("autodoc-process-docstring", write_tables, priority=900)
    app.connect("doctree-read", link_names)
    app.connect("missing-reference", find_entry)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
