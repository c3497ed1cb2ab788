"""The pages of a built site, read by an HTML parser: what they have, what they load, where they lead."""

from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADS = {("script", "src"), ("img", "src"), ("iframe", "src"), ("source", "src"), ("video", "src"), ("object", "data")}
LOADED = {"stylesheet", "preload", "icon", "shortcut icon", "modulepreload", "preconnect", "dns-prefetch"}


@dataclass
class Page(HTMLParser):
    """One page."""

    path: Path
    """Its file."""
    ids: set[str] = field(default_factory=set)
    """What a link with a fragment can lead to."""
    links: list[str] = field(default_factory=list)
    """Where its anchors lead, as written."""
    loads: list[str] = field(default_factory=list)
    """What a browser fetches for it, as written."""
    images: list[dict[str, str]] = field(default_factory=list)
    """Its images' attributes."""
    words: str = ""
    """Its text, without scripts and styles."""

    def __post_init__(self) -> None:
        super().__init__()
        self._silent = 0
        self.feed(self.path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.ids.update(found[name] for name in ("id", "name") if name in found)
        self._silent += tag in ("script", "style")
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        self.loads += [found[name] for name in found if (tag, name) in LOADS]
        if tag == "link" and LOADED & {found.get("rel", "")}:
            self.loads.append(found["href"])
        if tag == "img":
            self.images.append(found)

    def handle_endtag(self, tag: str) -> None:
        self._silent -= tag in ("script", "style")

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.words += data


def broken(pages: dict[Path, Page]) -> list[str]:
    """Every link within the site, and everything loaded, that leads nowhere: to no file, or to no place in it."""
    faults = []
    for page in pages.values():
        for link in page.links + page.loads:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (page.path.parent / unquote(parts.path)).resolve() if parts.path else page.path
            fragment = unquote(parts.fragment)
            if not target.is_file():
                faults.append(f"{page.path.name}: {link}: no such file")
            elif fragment and target in pages and fragment not in pages[target].ids:
                faults.append(f"{page.path.name}: {link}: no such place")
    return faults


def outside(link: str) -> bool:
    """Whether a browser asks another machine for it."""
    return urlsplit(link).scheme in ("http", "https") or link.startswith("//")
