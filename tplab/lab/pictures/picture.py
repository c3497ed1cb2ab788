"""What moves: an ES module of ours with an anywidget around it, which is a page of its own, too.

A module draws in the browser and needs no kernel for it, so the same file serves a notebook, a page on a web site and a
test. Not a bundler: the modules import nothing but each other, and one text is made of them here. (anywidget takes one
text, and knows no files beside it.)
"""

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from html import escape
from importlib.resources import files
from typing import Any, ClassVar

import anywidget

from tplab.lab.panels import html
from tplab.lab.still import AFTER_A_MOVE_S, Part, Stilled

_IMPORT = re.compile(r'^import\s*\{[^}]*\}\s*from\s*"\./([\w-]+)\.js";\n', re.M)
_EXPORT = re.compile(r"^export (?=(?:async )?function|const|let|class)", re.M)

_OF_WIDGETS = frozenset({"layout", "tabbable", "tooltip"})
MOVES = "A moving picture. Run ▸ Run All Cells connects it to the notebook."
_FITTING = """<script>
if (window.frameElement) {
  const fit = () => { frameElement.style.height = `${document.documentElement.offsetHeight + 4}px`; };
  new ResizeObserver(fit).observe(document.documentElement);
}
</script>"""


class Picture(Stilled, anywidget.AnyWidget):
    """A moving picture. A subclass names its ``module`` (a file of ``modules/``, without ``.js``) and has as synced
    traits what the module reads and writes.

    The module exports ``render({ model, el })``, as anywidgets do, and imports from its siblings by name
    (``import { svg } from "./common.js";``); all share one scope, so their names differ.
    """

    module: ClassVar[str]
    """File in ``modules/``, without its ending."""

    caption: ClassVar[str]
    """What the picture is, in a few words: the title of its page."""

    moved_by_hand: ClassVar[tuple[str, ...]] = ()
    """Traits that the page sets when a hand moves something: a panel that holds the picture renews its still then."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        if "module" in cls.__dict__:
            cls._esm = module_text(cls.module)
        super().__init_subclass__(**kwargs)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.observe(lambda _: self.settled(after_s=AFTER_A_MOVE_S), names=self._shared())

    def state(self) -> dict[str, Any]:
        """The traits that the module reads, by name: what its page is given in place of a kernel."""
        return dict(self.get_state(self._shared()))

    def still_state(self) -> Mapping[str, Any]:
        """The same for a page that outlives the kernel."""
        return self.state()

    def still(self) -> Sequence[Part]:
        """The picture's own page, in a frame as high as it: it moves without the kernel, too."""
        page = escape(self._page(self.still_state()) + _FITTING)
        frame = (
            f'<iframe title="{escape(self.caption)}" loading="lazy" srcdoc="{page}" '
            'style="display:block;width:100%;height:420px;border:0"></iframe>'
        )
        return [html.heading(self.caption), html.quiet(MOVES), frame]

    def still_figures(self) -> int:
        """None: it is words to the page."""
        return 0

    def _shared(self) -> list[str]:
        return [name for name in self.keys if not name.startswith("_") and name not in _OF_WIDGETS]

    def page(self) -> str:
        """The picture as it is now, as an HTML page that needs neither kernel nor network."""
        return self._page(self.state())

    def _page(self, values: Mapping[str, Any]) -> str:
        state = json.dumps(values).replace("<", "\\u003c")  # or a text in it could end the script
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{escape(self.caption)}</title>\n"
            "<style>:root { color-scheme: light dark; } body { margin: 16px; background: Canvas; }</style>\n"
            '</head>\n<body>\n<main id="picture"></main>\n'
            f'<script type="application/json" id="state" data-picture="{self.module}">{state}</script>\n'
            f'<script type="module">\n{module_text(self.module)}\n'
            'const model = localModel(JSON.parse(document.getElementById("state").textContent));\n'
            "globalThis.tplab = model;\n"
            'render({ model, el: document.getElementById("picture") });\n</script>\n</body>\n</html>\n'
        )


@cache
def module_text(name: str) -> str:
    """One ES module of ``name`` and of all that it imports, each once, which exports ``default { render }``."""
    parts: dict[str, str] = {}
    _collect(name, parts)
    return "\n".join(parts.values()) + "\nexport default { render };\n"


def _collect(name: str, parts: dict[str, str]) -> None:
    text = files("tplab.lab.pictures").joinpath("modules", f"{name}.js").read_text("utf-8")
    for wanted in _IMPORT.findall(text):
        if wanted not in parts:
            _collect(wanted, parts)
    parts[name] = _EXPORT.sub("", _IMPORT.sub("", text))
