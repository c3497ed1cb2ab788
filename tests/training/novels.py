"""Jane Austen's six novels as plain text, from Debian's package ``r-cran-janeaustenr``.

The novels are in the public domain (the author died in 1817); the package has them from Project Gutenberg, and what is
its own in it is under the MIT licence. The text is not shipped: ``apt-get download r-cran-janeaustenr`` brings it, and

    python -m tests.training.novels r-cran-janeaustenr_1.0.0-1_all.deb novels.txt

writes a paragraph a line. Needs ``dpkg-deb`` and the package ``rdata``, which reads R's files.
"""

import hashlib
import re
import subprocess
import sys
import tempfile
import unicodedata
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path

SHA256 = "db44a9b8a4d2db080c9fdb975a79f1c8410db2424ca8618d1c8e4a5725921ed4"
"""Of the text that is written."""
_DATA = "usr/lib/R/site-library/janeaustenr/data"
_HEADING = re.compile(r"(chapter|volume|finis|the end|\[|by jane austen)", re.I)


def paragraphs(lines: Sequence[str]) -> list[str]:
    """The paragraphs of a novel whose lines are given: headings left out, quotation marks and dashes as ASCII has them,
    no accents, no italics, one space between words."""
    told = []
    for block in "\n".join(lines).split("\n\n"):
        text = re.sub(r"[_*]", "", unicodedata.normalize("NFKD", block)).translate(_PLAIN)
        text = " ".join(text.encode("ascii", "ignore").decode().split())
        if text and not _HEADING.match(text) and text != text.upper():
            told.append(text)
    return told


_PLAIN = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'", "—": "--", "–": "-", "`": "'"})


def read_package(deb: Path) -> dict[str, list[str]]:
    """Lines of each novel, by its name in the package."""
    import rdata

    def value(raw: bytes) -> object:
        return rdata.conversion.convert(rdata.parser.parse_data(raw))

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(action="ignore"):
        subprocess.run(["dpkg-deb", "-x", deb, folder], check=True)
        packed = (Path(folder) / _DATA / "Rdata.rdb").read_bytes()
        index = value((Path(folder) / _DATA / "Rdata.rdx").read_bytes())["variables"]  # type: ignore[index]
        # Each piece: its length when unpacked, in four bytes, and then what zlib made of it.
        return {
            str(name): [str(line) for line in value(zlib.decompress(packed[start + 4 : start + length]))]  # type: ignore[attr-defined]
            for name, (start, length) in sorted(index.items())
        }


def main(deb: str, target: str) -> None:
    text = "".join(f"{each}\n" for lines in read_package(Path(deb)).values() for each in paragraphs(lines))
    Path(target).write_text(text, "ascii")
    digest = hashlib.sha256(text.encode()).hexdigest()
    print(f"{len(text):,} bytes, sha256 {digest}" + ("" if digest == SHA256 else f", not {SHA256}"))


if __name__ == "__main__":
    main(*sys.argv[1:])
