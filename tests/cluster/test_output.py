"""Output cut into lines of bounded length, whatever the pieces it arrives in."""

import os
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tplab.cluster.output import LONGEST_LINE, LONGEST_OPEN, Pipe

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


@given(st.lists(st.binary(max_size=50).map(lambda data: data.translate(None, b"\r\b\x1b")), max_size=30))
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
    assert long < 10 * short


BAR = b"\r  0%|    | 0/2"
UP, RED, PLAIN = b"\x1b[A", b"\x1b[31m", b"\x1b[0m"


class TestOpenLine:
    """What has no end yet."""

    @staticmethod
    def opened(writer):
        return [event.text for event in writer.pipe.opened()]

    def test_is_told_when_it_changes(self, writer):
        writer.write(b"done\n1 of")
        assert (writer.lines, self.opened(writer), self.opened(writer)) == (["done"], ["1 of"], [])
        writer.write(b" 2\r2 of 2")
        assert self.opened(writer) == ["2 of 2"]
        writer.write(b"\n")
        assert (writer.lines, self.opened(writer)) == (["done", "2 of 2"], [""])

    def test_half_a_character_is_not_shown(self, writer):
        whole = "50 % ███".encode()
        for end in range(len(whole) + 1):
            writer.write(whole[max(0, end - 1) : end])
            for text in self.opened(writer):
                assert "50 % ███".startswith(text)
        assert writer.end() == ["50 % ███"]

    def test_of_a_long_one_the_end(self, writer):
        writer.write("ä".encode() * 400_000 + b"end")
        (text,) = self.opened(writer)
        assert len(text) <= LONGEST_OPEN + 1
        assert text[0] == "…"
        assert text.endswith("äend")
        assert writer.end() == ["ä" * (LONGEST_LINE // 2), "ä" * (400_000 - LONGEST_LINE // 2) + "end"]

    def test_rubbish(self, writer):
        writer.write(bytes(range(256)).replace(b"\n", b"").replace(b"\r", b"") * 50)
        (text,) = self.opened(writer)
        assert 0 < len(text) <= LONGEST_OPEN + 1
        assert len(writer.end()) == 1

    def test_a_bar_that_wipes_itself_out_leaves_nothing(self, writer):
        writer.write(BAR + b"\r" + b" " * 14 + b"\r")
        assert self.opened(writer) == []
        assert writer.end() == []


class TestCursor:
    def test_nested_bars(self, writer):
        """As tqdm writes them: a newline, the inner bar, one up. In any pieces."""
        inner = [b"\n\rinner %d" % i + UP for i in range(100)]
        writer.write(b"before\n\router 0")
        for i, piece in enumerate(inner):
            for at in range(0, len(piece), 1 + i % 5):
                writer.write(piece[at : at + 1 + i % 5])
        assert [event.text for event in writer.pipe.opened()] == ["outer 0\ninner 99"]
        writer.write(b"\router 1\n\r         \rafter")
        assert [line for line in writer.end() if line != "outer 0"] == ["before", "outer 1", "after"]

    def test_a_nested_bar_that_stays(self, writer):
        writer.write(
            b"\router 0\n\rinner a" + UP + b"\rinner A\n\router 1\n\rinner b" + UP + b"\rinner B\n\router 2\nend\n"
        )
        assert writer.end() == ["inner A", "inner B", "outer 2", "end"]

    def test_a_bar_in_the_second_row(self, writer):
        """As tqdm draws with position=1: the newline may come alone, and what stays below is an old state."""
        writer.write(b"first\n")
        for i in range(9):
            writer.write(b"\n")
            writer.write(b"\r%d of 9" % i)
            writer.write(UP)
        writer.write(b"\r9 of 9\n")
        assert [line for line in writer.end() if line] == ["first", "9 of 9"]

    def test_a_fault_in_nested_bars_leaves_both(self, writer):
        writer.write(b"\router 1\n\rinner 3" + UP)
        assert writer.end() == ["outer 1", "inner 3"]

    def test_empty_lines(self, writer):
        for piece in (b"\n", b"a\n", b"\n", b"\n", b"b\n\n"):
            writer.write(piece)
        assert writer.end() == ["", "a", "", "", "b", ""]

    def test_backspaces(self, writer):
        writer.write(b"50 %\b\b\b\b99 %" + "é€\b\b".encode() + b"\n" + b"a" * 200_000 + b"\b" * 199_999 + b"\n")
        assert writer.end() == ["99 %", "a"]

    def test_beyond_the_top(self, writer):
        writer.write(b"first\n" + UP * 1000 + b"second\n" * 100)
        lines = writer.end()
        assert lines.count("second") == 100

    def test_moves_go_and_colours_end(self, writer):
        writer.write(b"\x1b[2K\x1b[?25l" + RED + b"red\n" + RED + b"both" + PLAIN + b" ends\x1b[K\n")
        assert writer.end() == ["\x1b[31mred\x1b[0m", "\x1b[31mboth\x1b[0m ends"]

    def test_lines_with_colours_take_their_bytes_time(self):
        def seconds(line):
            writer = Writer()
            began = time.perf_counter()
            for _ in range(4):
                writer.write(line * (1 << 12))
            writer.end()
            return time.perf_counter() - began

        plain = min(seconds(b"y" * 108 + b"\n") for _ in range(3))
        assert min(seconds(RED + b"y" * 99 + PLAIN + b"\n") for _ in range(3)) < 10 * plain
