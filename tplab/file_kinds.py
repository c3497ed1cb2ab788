"""What a file is instead of what it should be, and the way out: an archive, a web page, a pointer, a server's answer.

A browser or ``curl`` saves something under the right name whatever the server sent. The parser of what was hoped for
would then blame the first character; people want to hear what they have.
"""

import re

_BINARY: tuple[tuple[bytes, str], ...] = (
    (b"\x1f\x8b", "packed with gzip: unpack it first (gunzip)"),
    (b"\x28\xb5\x2f\xfd", "packed with zstd: unpack it first (unzstd)"),
    (b"BZh", "packed with bzip2: unpack it first (bunzip2)"),
    (b"\xfd7zXZ\0", "packed with xz: unpack it first (unxz)"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive: unpack it first"),
    (b"PAR1", "a Parquet table: write it as CSV first (in pandas: read_parquet(...).to_csv(..., index=False))"),
    (b"ARROW1", "an Arrow or Feather table: write it as CSV first (in pandas: read_feather(...).to_csv(...))"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an Excel or Word document: save it as CSV or as plain text in UTF-8"),
    (b"SQLite format 3\0", "an SQLite database: export what is meant as CSV or JSON"),
    (b"\x93NUMPY", "an array of NumPy: write it as CSV or JSON"),
    (b"GGUF", "weights in GGUF: give the config.json of the original model"),
    (b"%PDF-", "a PDF document: copy the text out of it"),
    (b"\x89PNG", "a picture: give the text"),
    (b"\xff\xd8\xff", "a picture: give the text"),
    (b"GIF8", "a picture: give the text"),
    (b"\x7fELF", "a program: give what it prints"),
)
_ZIPPED = (
    (b"xl/", "an Excel workbook: save the sheet as 'CSV UTF-8'"),
    (b"word/", "a Word document: save it as plain text in UTF-8"),
    (b"data.pkl", "a file of torch.save: give the config.json or table that goes with it"),
    (b".npy", "arrays of NumPy: write them as CSV or JSON"),
    (b"", "a zip archive: unpack it first"),
)
_PAGE = re.compile(r"(<\?xml[^>]*>)?\s*(<!--.*?-->\s*)?(<!doctype html|<html|<head)", re.IGNORECASE | re.DOTALL)
_RAW = "take the file itself (GitHub: 'Raw'; Hugging Face: 'download', which has resolve in its address, not blob)"
_ANSWER = re.compile(
    r"(404:? ?(page )?not found|not found|entry not found|repository not found|invalid username or password"
    r"|access to model .{1,200}|access denied.{0,100}|unauthorized|forbidden|\{\"(error|message)\".*)\.?",
    re.IGNORECASE | re.DOTALL,
)
_LONGEST_ANSWER = 1000


def binary_kind(data: bytes) -> str | None:
    """What a file that begins so is, if it is one of the usual that are no text, with the way out."""
    for magic, kind in _BINARY:
        if data.startswith(magic):
            return kind
    if data.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return next(kind for inside, kind in _ZIPPED if inside in data)
    if data[8:9] == b"{" and 2 <= int.from_bytes(data[:8], "little") <= 100 << 20:
        return "weights in safetensors: give the config.json that lies beside them"
    return None


def text_kind(text: str) -> str | None:
    """What a text is that nobody means to give, with the way out."""
    head = text[:4096].lstrip()
    if _PAGE.match(head):
        return f"a web page (HTML): {_RAW}"
    if head.startswith("version https://git-lfs.github.com/spec/"):
        return "a pointer of Git LFS, not the file: fetch it (git lfs pull)"
    if head.startswith("{\\rtf"):
        return "a text with formats (RTF): save it as plain text in UTF-8"
    if head.startswith('{"payload":') and '"repo"' in text:
        return f"GitHub's page about a file: {_RAW}"
    if head.startswith("{") and '"git_url"' in head and '"download_url"' in head:
        return f"GitHub's description of a file: {_RAW}"
    if len(text) <= _LONGEST_ANSWER and _ANSWER.fullmatch(text.strip()):
        return f"an answer of a server ({' '.join(text.split())[:80]}), not the file: {_RAW}"
    return None


def encoding_of(data: bytes) -> str:
    """UTF-8 unless a byte order mark, or zero bytes in every second place, say UTF-16 (or 32)."""
    if data.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        return "utf-32"
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    head = data[: 4096 - 4096 % 2]
    pairs = len(head) // 2
    low, high = head[1::2].count(0), head[0::2].count(0)
    if pairs >= 2 and max(low, high) > 0.6 * pairs and min(low, high) < 0.1 * pairs:
        return "utf-16-le" if low > high else "utf-16-be"
    return "utf-8-sig"


def json_hint(text: str, at: int) -> str:
    """What is usually wrong where a JSON parser stops, with a leading semicolon; empty if it is none of the usual."""
    before, here = text[:at].rstrip(), text[at : at + 40].lstrip()
    word = re.match(r"[A-Za-z]+", here)
    if not text.strip():
        return "; the file is empty"
    if here.startswith(("//", "/*", "#")):
        return "; JSON has no comments: take them out"
    if (before.endswith(",") and here.startswith(("}", "]"))) or (here.startswith(",") and before.endswith(("{", "["))):
        return "; JSON has no comma before a closing bracket: take it out"
    if here.startswith(("}", "]")) and before.endswith(":"):
        return "; a value is missing"
    if here.startswith("'") or (word and word[0] in ("True", "False", "None")):
        return "; it looks like what Python prints: write it with json.dump"
    if not here:
        return "; the file ends too early: is it cut off?"
    if before.endswith(("}", "]")) and here.startswith(("{", "[")):
        return "; one value follows another: is it one JSON per line?"
    return ""
