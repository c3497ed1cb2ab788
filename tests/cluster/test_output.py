"""Output cut into lines of bounded length, whatever the pieces it arrives in."""

import os
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tplab.cluster.output import LONGEST_LINE, Pipe

pytestmark = pytest.mark.timeout(60)


class Writer:
    """A pipe, the supervisor's end of it, and what has come out of it."""

    def __init__(self):
        read, self.fd = os.pipe()
        os.set_blocking(read, False)
        self.pipe = Pipe(3, "stdout", os.fdopen(read, "rb", buffering=0))
        self.lines = []

    def write(self, data):
        while data:
            data = data[os.write(self.fd, data[: 1 << 15]) :]
            self.read()

    def read(self):
        self.lines += [wrote.line for wrote in self.pipe.read()]

    def end(self):
        os.close(self.fd)
        while not self.pipe.ended:
            self.read()
        self.pipe.file.close()
        return self.lines


@pytest.fixture
def writer():
    return Writer()


@given(st.lists(st.binary(max_size=50).map(lambda data: data.replace(b"\r", b"-")), max_size=30))
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_pieces(pieces):
    writer = Writer()
    for piece in pieces:
        writer.write(piece)
    whole = b"".join(pieces).decode(errors="replace")
    expected = whole.split("\n")
    assert writer.end() == (expected if expected[-1] else expected[:-1])


def test_a_line_of_the_bound_is_whole_and_a_longer_one_comes_in_pieces(writer):
    writer.write(b"x" * LONGEST_LINE + b"\n" + b"y" * (2 * LONGEST_LINE + 5) + b"\nend\n")
    lines = writer.end()
    assert [len(line) for line in lines] == [LONGEST_LINE, LONGEST_LINE, LONGEST_LINE, 5, 3]
    assert "".join(lines) == "x" * LONGEST_LINE + "y" * (2 * LONGEST_LINE + 5) + "end"


def test_no_character_is_cut_in_two(writer):
    text = "a" + "é€😀" * LONGEST_LINE
    writer.write(text.encode())
    assert "".join(writer.end()) == text


def test_a_line_without_end_is_not_kept_until_it_has_one(writer):
    for _ in range(40):
        writer.write(b"z" * (1 << 17))
        assert len(writer.pipe.partial) <= LONGEST_LINE
    assert len(writer.lines) >= 8


def test_of_a_progress_bar_the_last_state(writer):
    writer.write(b"".join(b"\r%3d %%" % percent for percent in range(101)) + b"\nnext\n")
    assert writer.end() == ["100 %", "next"]


def test_of_a_progress_bar_without_end_too(writer):
    writer.write(b"".join(b"\rstep %d of many, and some words more" % step for step in range(50_000)))
    assert len(writer.pipe.partial) <= LONGEST_LINE
    assert writer.end()[-1] == "step 49999 of many, and some words more"
    assert len(writer.lines) <= 3


def test_windows_line_ends(writer):
    writer.write(b"one\r\ntwo\r\n")
    assert writer.end() == ["one", "two"]


def test_time_grows_with_the_bytes_alone():
    """One line of 32 MB beside the same bytes in short lines (28 s beside 0.3 s, once)."""

    def seconds(data):
        writer = Writer()
        began = time.perf_counter()
        for _ in range(32):
            writer.write(data)
        writer.end()
        return time.perf_counter() - began

    short = min(seconds((b"y" * 1023 + b"\n") * 1024) for _ in range(3))
    long = min(seconds(b"y" * (1 << 20)) for _ in range(3))
    assert long < 3 * short
