"""Random damage to everything that people download: accepted, or refused in our words within a second. Never a fault.

``pytest -m soak tests/fuzz`` tries 50,000 inputs per reader and prints what became of them.
"""

import json
import random
import signal
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import tplab
from tests.fuzz.mutations import damaged
from tests.fuzz.readers import READERS, bases_of

FEW, MANY = 250, 50_000
LIMIT_S = 1.0
"""Of processor time, for one input."""
HOME = str(Path(tplab.__file__).parent)


class TooSlow(BaseException):
    """Nobody catches it."""


@pytest.fixture(autouse=True)
def a_limit_in_processor_time() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGVTALRM, stop)
    yield
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    signal.signal(signal.SIGVTALRM, before)


@pytest.mark.parametrize("name", READERS)
def test_valid_inputs_are_accepted(name: str, tmp_path: Path) -> None:
    reader = READERS[name]
    reader.prepare(tmp_path)
    for base in bases_of(name, tmp_path):
        (tmp_path / reader.file).write_bytes(base)
        reader.read(tmp_path / reader.file)


@pytest.mark.parametrize("name", READERS)
def test_damaged_inputs(name: str, tmp_path: Path) -> None:
    try_many(name, tmp_path, FEW)


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", READERS)
def test_damaged_inputs_for_long(name: str, tmp_path: Path) -> None:
    try_many(name, tmp_path, MANY)


def try_many(name: str, folder: Path, count: int) -> None:
    reader, outcomes, faults = READERS[name], Counter[str](), list[str]()
    reader.prepare(folder)
    bases = bases_of(name, folder)
    path = folder / reader.file
    words = (*reader.words, path.name, *(key for base in bases for key in _keys(base)))
    path.write_bytes(bases[0])
    reader.read(path)  # what is imported on first use counts for no input
    began = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for i in range(count):
            data = damaged(random.Random(f"{name} {i}"), bases[i % len(bases)])
            path.write_bytes(data)
            what, why = outcome(reader.read, path, words)
            outcomes[what] += 1
            if what not in ("accepted", "refused"):
                faults.append(f"input {i}, {what}: {why}\n  {data[:300]!r}")
    print(f"{name}: {count:,} inputs, {dict(outcomes)}, {time.process_time() - began:.0f} s")
    assert not faults, f"{len(faults)} faults\n" + "\n".join(faults[:5])


def outcome(read: Any, path: Path, words: tuple[str, ...]) -> tuple[str, str]:
    """``accepted``, ``refused`` in our own words, or what else happened and where."""
    began = time.process_time()
    signal.setitimer(signal.ITIMER_VIRTUAL, LIMIT_S)
    try:
        read(path)
        what, why = "accepted", ""
    except ValueError as error:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        message, last = str(error), traceback.extract_tb(error.__traceback__)[-1]
        ours = last.filename.startswith(HOME) or type(error) is ValueError
        named = any(word in message for word in words) and len(message) < 5000
        what, why = ("refused" if ours and named else "not in our words"), f"{type(error).__name__}: {message[:500]}"
    except (Exception, TooSlow) as error:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        last = traceback.extract_tb(error.__traceback__)[-1]
        what, why = type(error).__name__, f"{str(error)[:300]} at {last.filename}:{last.lineno}"
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    if time.process_time() - began > LIMIT_S:
        what = f"{what}, slow"
    return what, why


def _keys(base: bytes) -> list[str]:
    """Of all objects in a JSON text; none of another."""
    found: list[str] = []
    with suppress(ValueError):
        json.loads(base, object_hook=found.extend)
    return found
