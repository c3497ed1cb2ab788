"""Valid inputs damaged at random: JSON by its structure, everything by its bytes. The same for the same generator."""

import copy
import json
import random
import re
from typing import Any

DEEP = "\0deep\0"
"""Stands for lists nested 100,000 deep, which ``json.dumps`` cannot write."""
NASTY: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 7, 255, 4096.0, 0.5, -0.0, 1e-300, 1e-320, 1e17, 1e300, 1e999, -1e999),
    *(float("nan"), 10**9 + 7, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 10**18, -(10**18), 10**30, 10**1000),
    *("", " ", "3", "-1", "nan", "inf", "1e999", "true", "null", "../x", "/etc/passwd", "\0", "\ud800", "a" * 300),
    *("é" * 50, "x" * 100_000, "1" * 5000, "F", "0F0", "GPU0", "full_attention", "float32", "fp8", "graph"),
    *([], {}, [1], [[1]], [None], ["a", 1], {"": 0}, {"a": {"b": [1, 2]}}, [0] * 1000, ["x"] * 1000, DEEP),
)
"""Wrong types and sizes."""
TOKENS = (
    *(b"", b"\0", b"\n", b"\r\n", b",", b'"', b"'", b"\t", b" " * 2000, b"-", b"[" * 2000, b"{" * 300, b"]", b"}"),
    *(b"9" * 30, b"9" * 5000, b"99999999", b"-1", b"1e999", b"nan", b"NaN", b"Infinity", b"0", b"1.5", b"x" * 200_000),
    *(b"\xff\xfe", b"\xef\xbb\xbf", b"\xc3\x28", b"\x1b[4m", b"NV", b"NV0", b"SYS", b"X", b"GPU9", b"NIC0", b"F", b"B"),
    *(
        b"> ",
        b";",
        b"\r",
        b"MIG 3g.40gb",
        b"NVIDIA ",
        b"GPU 0: ",
        b"OK",
        b"NS",
        b"\xa0",
        b"\xe2\x80\x8b",
        b"\\tGPU0",
        b"2x H100",
    ),
    *(b"9999999F0", b"0F9999999", b"1048575F0", b"0SEND_F0", b"|", b"#", b"GiB", b"true", b"null", b"\n" * 3000),
)
_NUMBER = re.compile(rb"\d+")


def damaged(rng: random.Random, base: bytes) -> bytes:
    """``base`` with one to three faults."""
    data = base
    try:
        tree = json.loads(base)
    except ValueError:
        tree = None
    if tree is not None and rng.random() < 0.6:
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            tree = _tree_fault(rng, tree)
        data = json.dumps(tree).replace(json.dumps(DEEP), "[" * 100_000 + "]" * 100_000).encode()
        if rng.random() < 0.8:
            return data
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        data = _byte_fault(rng, data)
    return data


def _tree_fault(rng: random.Random, tree: Any) -> Any:
    """A copy with one value replaced, left out, doubled, nested, swapped for another, or given another name."""
    tree = copy.deepcopy(tree)
    places: list[tuple[Any, Any]] = []
    pending = [tree] if isinstance(tree, dict | list) else []
    while pending:
        held = pending.pop()
        keys = list(held) if isinstance(held, dict) else range(len(held))
        places += [(held, key) for key in keys]
        pending += [held[key] for key in keys if isinstance(held[key], dict | list)]
    if not places or rng.random() < 0.02:
        return rng.choice(NASTY)
    held, key = rng.choice(places)
    match rng.randrange(8):
        case 0 | 1 | 2:
            held[key] = copy.deepcopy(rng.choice(NASTY))
        case 3:
            del held[key]
        case 4:
            other, place = rng.choice(places)
            held[key] = copy.deepcopy(other[place])
        case 5:
            held[key] = [held[key]] * rng.choice((1, 2, 50)) if rng.random() < 0.7 else {"a": held[key]}
        case 6 if isinstance(held, dict):
            held[rng.choice((key + "s", "", "x" * 300, key.upper()))] = held.pop(key)
        case 6:
            held += held[: rng.randint(0, len(held))]
        case _:
            value = held[key]
            numeric = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e100
            held[key] = value * rng.choice((-1, 0, 0.5, 2, 10**6, 10**12)) if numeric else str(value)
    return tree


def _byte_fault(rng: random.Random, data: bytes) -> bytes:
    at, end = sorted((rng.randint(0, len(data)), rng.randint(0, len(data))))
    numbers = list(_NUMBER.finditer(data))
    match rng.randrange(9):
        case 0 if data:
            at = rng.randrange(len(data))
            return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
        case 1:
            return data[:at]
        case 2:
            return data[:at] + data[end:]
        case 3:
            return data[:end] + data[at:end] * rng.choice((1, 2, 20)) + data[end:]
        case 4:
            return data[:at] + data[end:] + data[at:end]
        case 5:
            return data[:at] + rng.randbytes(rng.randint(1, 40)) + data[at:]
        case 6 | 7 if numbers:
            found = rng.choice(numbers)
            number = rng.choice((b"0", b"1", b"-1", b"7", b"1000000007", b"9" * 20, b"9" * 5000, b"1e308", b"x", b""))
            return data[: found.start()] + number + data[found.end() :]
        case _:
            return data[:at] + rng.choice(TOKENS) + data[at:]
