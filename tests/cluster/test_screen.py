"""Lines in few messages, and what has no end redrawn in place, where there is one. No ranks but for the last tests."""

import io
import re
import sys
import time

import pytest

from tplab.cluster.screen import GATHERED_S, Screen, Screens

pytestmark = pytest.mark.timeout(60)


class Terminal(io.StringIO):
    """Remembers what it would show."""

    def __init__(self):
        super().__init__()
        self.rows, self.row, self.column, self.writes = [""], 0, 0, 0

    def isatty(self):
        return True

    def write(self, text):
        self.writes += 1
        for part in re.findall(r"\x1b\[.|[\r\n]|[^\x1b\r\n]+", text):
            if part == "\r":
                self.column = 0
            elif part == "\n":
                self.row, self.column = self.row + 1, 0
                self.rows += [""] * (self.row - len(self.rows) + 1)
            elif part == "\x1b[A":
                self.row -= 1
                assert self.row >= 0
            elif part == "\x1b[J":
                self.rows[self.row :] = [self.rows[self.row][: self.column]]
            else:
                row = self.rows[self.row].ljust(self.column)
                self.rows[self.row] = row[: self.column] + part + row[self.column + len(part) :]
                self.column += len(part)


def put(monkeypatch, file):
    """In the place of both streams; pytest puts its own there when fixtures are made."""
    monkeypatch.setattr(sys, "stdout", file)
    monkeypatch.setattr(sys, "stderr", file)
    return file


class TestTerminal:
    def test_bars_below_the_lines_in_rank_order(self, monkeypatch):
        terminal = put(monkeypatch, Terminal())
        screen = Screen()
        screen.open(1, "stderr", "10 %")
        screen.open(0, "stderr", "outer\ninner")
        screen.flush()
        assert terminal.rows == ["[rank 0] outer", "[rank 0] inner", "[rank 1] 10 %"]
        screen.write("[rank 1] a line", "stdout")
        screen.open(1, "stderr", "9 %")
        screen.flush()
        assert terminal.rows == ["[rank 1] a line", "[rank 0] outer", "[rank 0] inner", "[rank 1] 9 %"]
        screen.open(0, "stderr", "")
        screen.write("[rank 0] outer", "stderr")
        screen.flush()
        assert terminal.rows == ["[rank 1] a line", "[rank 0] outer", "[rank 1] 9 %"]
        screen.close()
        assert terminal.rows == ["[rank 1] a line", "[rank 0] outer", ""]

    def test_rows_wider_than_the_terminal_are_cut(self, monkeypatch):
        terminal = put(monkeypatch, Terminal())
        monkeypatch.setenv("COLUMNS", "20")
        screen = Screen()
        screen.open(0, "stdout", "x" * 100)
        screen.flush()
        assert terminal.rows == ["[rank 0] " + "x" * 10]


def test_elsewhere_only_lines_appear(capsys):
    screen = Screen()
    screen.open(0, "stdout", "50 %")
    screen.write("[rank 1] out", "stdout")
    screen.write("[rank 1] err", "stderr")
    screen.flush()
    assert capsys.readouterr() == ("[rank 1] out\n", "[rank 1] err\n")


class Shell:
    """What a kernel has published: the text of its streams, and of outputs that are replaced."""

    def __init__(self):
        self.texts, self.blocks, self.parent = [], [], {"metadata": {}}
        self.display_pub = self.kernel = self

    def get_parent(self):
        return self.parent

    def get_ipython(self):
        return self

    def publish(self, data, transient, update):
        assert update == (transient["display_id"] in [name for name, _ in self.blocks])
        self.blocks.append((transient["display_id"], data["text/plain"]))


def stream_of(shell):
    def write(self, text):
        shell.texts += [text] if text else []

    return type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream", "write": write})()


class TestKernel:
    """What stands at the end in stored notebooks is bounded, whatever was redrawn."""

    @pytest.fixture
    def shell(self, monkeypatch):
        shell = Shell()
        monkeypatch.setitem(sys.modules, "IPython", shell)
        return shell

    @pytest.mark.parametrize("page", [False, True])
    def test_a_bar_that_goes_on_for_long(self, shell, monkeypatch, page):
        """Without a page each redraw of its line would be stored, so it leaves its stream."""
        put(monkeypatch, stream_of(shell))
        shell.parent = {"metadata": {"cellId": "c1"} if page else {}}
        screen = Screen()
        for i in range(1000):
            screen.open(0, "stderr", f"step {i}")
            screen.flush()
        screen.open(0, "stderr", "")
        screen.write("[rank 0] step 999", "stderr")
        screen.flush()
        assert shell.texts[-1].lstrip("\r") == "[rank 0] step 999\n"
        if page:
            assert (len(shell.texts), shell.blocks) == (1001, [])
        else:
            assert len(shell.texts) < 30
            assert len({name for name, _ in shell.blocks}) == 1
            assert [text for _, text in shell.blocks][-2:] == ["[rank 0] step 999", ""]

    def test_the_line_of_the_stream_is_overwritten(self, shell, monkeypatch):
        """By a line of another rank, and by a shorter state of its own."""
        put(monkeypatch, stream_of(shell))
        screen = Screen()
        for text, line in (("10 of 10", ""), ("1 of 1", ""), ("2 of 2", "[rank 1] a")):
            screen.open(0, "stdout", text)
            if line:
                screen.write(line, "stdout")
            screen.flush()
        assert "".join(shell.texts) == ("[rank 0] 10 of 10\r[rank 0] 1 of 1  \r[rank 1] a     \n[rank 0] 2 of 2")
        assert shell.blocks == []

    def test_outputs_are_few_however_often_lines_are_open(self, shell, monkeypatch):
        """One after each twenty lines, at most: a block far above would not be seen."""
        put(monkeypatch, stream_of(shell))
        screen = Screen()
        for i in range(100):
            for rank in (0, 1):
                screen.open(rank, "stdout", f"epoch {i} ...")
            screen.flush()
            for rank in (0, 1):
                screen.open(rank, "stdout", "")
                screen.write(f"[rank {rank}] epoch {i} ... done", "stdout")
            screen.flush()
        assert len({name for name, _ in shell.blocks}) <= 10
        assert "".join(shell.texts).count("done\n") == 200


class TestGathering:
    def test_many_lines_are_one_write_and_none_is_lost(self, monkeypatch):
        terminal = put(monkeypatch, Terminal())
        screen = Screen()
        for i in range(2000):
            screen.write(f"line {i}", "stdout")
        assert not terminal.writes
        assert time.monotonic() < screen.due <= time.monotonic() + GATHERED_S
        screen.flush()
        assert screen.due is None
        assert terminal.rows == [*(f"line {i}" for i in range(2000)), ""]
        assert terminal.writes <= 4

    def test_both_streams_keep_their_order(self, capsys, monkeypatch):
        monkeypatch.setattr(sys, "stderr", sys.stdout)
        screen = Screen()
        for i, stream in enumerate(["stdout", "stdout", "stderr", "stdout"]):
            screen.write(str(i), stream)
        screen.flush()
        assert capsys.readouterr().out.split() == ["0", "1", "2", "3"]

    def test_a_flood_of_both_streams_makes_few_writes(self, monkeypatch):
        terminal = put(monkeypatch, Terminal())
        screen = Screen()
        for i in range(1000):
            screen.write(f"line {i}", ("stdout", "stderr")[i % 2])
        screen.flush()
        assert terminal.writes <= 8
        assert sorted(terminal.rows) == sorted([*(f"line {i}" for i in range(1000)), ""])

    def test_what_is_held_back_is_bounded(self, monkeypatch):
        terminal = put(monkeypatch, Terminal())
        screen = Screen()
        for _ in range(100):
            screen.write("x" * 10_000, "stdout")
        assert terminal.writes
        assert len("".join(terminal.rows)) > 700_000

    def test_which_are_due(self, monkeypatch):
        put(monkeypatch, Terminal())
        screens, one, idle = Screens(), Screen(), Screen()
        one.write("a", "stdout")
        screens.touch(one)
        screens.touch(idle)
        shown = []
        assert screens.due == one.due
        for now in (one.due - 1, one.due, one.due):
            screens.show(shown.append, now)
        assert shown == [one.flush]
        assert screens.due == float("inf")


def test_bars_of_notebooks_are_text_on_ranks(cluster2):
    from tqdm.notebook import tqdm, trange

    def draw(rank):
        import tqdm.notebook

        assert list(tqdm.notebook.tqdm(range(3))) == [0, 1, 2]

    def draw_what_the_kernel_imported(rank):
        list(tqdm(range(3)))
        list(trange(3))

    for fn, bars in ((draw, 1), (draw_what_the_kernel_imported, 2)):
        run = cluster2.submit(fn, on_output=lambda line: None)
        run.result()
        assert len([line for line in run.output if "100%|██████████| 3/3" in line]) == 2 * bars
        assert len(run.output) == 2 * bars
