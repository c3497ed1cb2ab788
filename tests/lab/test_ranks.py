"""``%%ranks`` and ``%ranks`` in an IPython shell: what a cell means on the ranks, and what it says when it cannot."""

import os
import re
import signal
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from tplab import Cluster
from tplab.lab import Pool
from tplab.lab.ranks import _chosen, _is_command

pytestmark = pytest.mark.timeout(120)


class Notebook:
    """A shell without a kernel: cells, and what they print."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        config = Config()
        config.HistoryManager.enabled = False
        config.InteractiveShell.colors = "nocolor"
        self.shell = InteractiveShell(config=config)
        self._capsys = capsys
        self("%load_ext tplab")

    def __call__(self, code: str) -> str:
        """Run a cell that must not fail; returns what it printed."""
        failed, text = self._run(code)
        assert not failed, text
        return text

    def fails(self, code: str) -> str:
        """Run a cell that must fail; returns what it printed, the traceback among it."""
        failed, text = self._run(code)
        assert failed, text
        return text

    def _run(self, code: str) -> tuple[bool, str]:
        self._capsys.readouterr()
        result = self.shell.run_cell(textwrap.dedent(code), store_history=True)
        printed = self._capsys.readouterr()
        return not result.success, printed.out + printed.err


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(2, "gloo") as cluster:
        yield cluster


@pytest.fixture
def notebook(capsys: pytest.CaptureFixture[str], cluster: Cluster) -> Iterator[Notebook]:
    """A notebook that has a cluster. The namespace on its ranks lives on through the tests of this module."""
    displayhook, excepthook = sys.displayhook, sys.excepthook
    made = Notebook(capsys)
    made.shell.user_ns["cluster"] = cluster
    yield made
    sys.displayhook, sys.excepthook = displayhook, excepthook


class TestNamespace:
    def test_lives_from_cell_to_cell(self, notebook: Notebook) -> None:
        notebook("%%ranks\nimport math\nx = torch.ones(2) * (rank + 1)\ndef twice(a):\n    return 2 * a")
        assert notebook("%%ranks\ndist.all_reduce(x)\ntwice(x).tolist(), math.floor(1.5)") == (
            "[rank 0] ([6.0, 6.0], 1)\n[rank 1] ([6.0, 6.0], 1)\n"
        )

    def test_has_what_a_cell_expects(self, notebook: Notebook) -> None:
        text = notebook("%%ranks\n__name__, rank == dist.get_rank(), rank.index, world_size, str(device), f'{rank}'")
        assert "[rank 1] ('__main__', True, 1, 2, 'cpu', '1')" in text

    def test_keeps_a_name_that_the_cell_took(self, notebook: Notebook) -> None:
        notebook("%%ranks\nrank = 40 + dist.get_rank()")
        assert notebook("%%ranks\nrank") == "[rank 0] 40\n[rank 1] 41\n"
        notebook("%%ranks\ndel rank")
        assert notebook("%%ranks 1\nrank.world_size") == "[rank 1] 2\n"

    def test_objects_of_its_classes_can_be_gathered(self, notebook: Notebook) -> None:
        notebook("%%ranks\nclass Point:\n    def __init__(self, x):\n        self.x = x")
        text = notebook("%%ranks\nout = [None] * 2\ndist.all_gather_object(out, Point(int(rank)))\n[p.x for p in out]")
        assert text == "[rank 0] [0, 1]\n[rank 1] [0, 1]\n"

    def test_what_a_function_left_in_the_store(self, notebook: Notebook) -> None:
        notebook("def load(rank):\n    rank.store['weights'] = rank.index + 0.5\ncluster.run(load)")
        assert "[rank 1] 1.5" in notebook("%%ranks\nstore['weights']")
        notebook("%%ranks\nstore['weights'] = 3")
        assert "[3, 3]" in notebook("cluster.run(lambda rank: rank.store['weights'])")

    def test_source_of_its_functions(self, notebook: Notebook) -> None:
        notebook("%%ranks 0\n\ndef f(a):\n    return a  # so it stands")
        assert "# so it stands" in notebook("%%ranks 0\nimport inspect\nprint(inspect.getsource(f))")

    def test_futures_stay(self, notebook: Notebook) -> None:
        notebook("%%ranks 0\nfrom __future__ import annotations")
        assert "{'z': 'Nowhere'}" in notebook("%%ranks 0\nclass Q:\n    z: Nowhere\nQ.__annotations__")

    def test_on_fewer_ranks(self, notebook: Notebook) -> None:
        assert notebook("%%ranks -n 1\nworld_size, dist.get_world_size()") == "[rank 0] (1, 1)\n"
        assert "[rank 1] 2" in notebook("%%ranks\nworld_size")

    def test_edited_modules_are_loaded_again_where_the_notebook_does(
        self, notebook: Notebook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Also those that only the ranks have imported, and what a cell has taken from them by name."""
        file = tmp_path / "edited_by_and_by.py"
        monkeypatch.syspath_prepend(tmp_path)
        file.write_text("def f():\n    return 1\n")
        notebook("%load_ext autoreload\n%autoreload 2")
        notebook("%%ranks\nimport edited_by_and_by\nfrom edited_by_and_by import f")
        file.write_text("def f():\n    return 'two'\n")
        assert notebook("%%ranks 0\nf(), edited_by_and_by.f()") == "[rank 0] ('two', 'two')\n"
        notebook("import edited_by_and_by")
        file.write_text("def f():\n    return 'three'  # by now\n")
        assert notebook("%%ranks 1\nf(), edited_by_and_by.f()") == "[rank 1] ('three', 'three')\n"
        notebook("%autoreload 0")
        file.write_text("def f():\n    return 4\n")
        assert notebook("%%ranks 1\nf()") == "[rank 1] 'three'\n"


class TestLastExpression:
    @pytest.mark.parametrize(
        ("code", "shown"),
        [
            ("3", "3"),
            ("3;", None),
            ("3  # why;", "3"),
            ("a = 3", None),
            ("for i in range(2):\n    i", None),
            ("None", None),
            ("# nothing", None),
            ("import asyncio\nawait asyncio.sleep(0, 7)", "7"),
            ("%%time\na = 5\na", "5"),
            ("words = !echo one\nwords", "['one']"),
            ("global g\ng = 1\ng", "1"),
            ("torch.eye(2)", "tensor([[1., 0.],\n                 [0., 1.]])"),
        ],
    )
    def test_is_shown(self, notebook: Notebook, code: str, shown: str | None) -> None:
        lines = notebook(f"%%ranks 0\n{code}").splitlines(keepends=True)
        text = "".join(line for line in lines if not re.match(r"\[rank 0\] (Wall time|CPU times): ", line))
        assert text == ("" if shown is None else f"[rank 0] {shown}\n")

    def test_is_underscore(self, notebook: Notebook) -> None:
        notebook("%%ranks\nrank + 5;")
        assert "[rank 1] 7" in notebook("%%ranks\n_ + 1")

    def test_comes_after_what_was_printed(self, notebook: Notebook) -> None:
        assert notebook("%%ranks 1\nprint('first')\n'then'") == "[rank 1] first\n[rank 1] 'then'\n"

    def test_that_cannot_travel(self, notebook: Notebook) -> None:
        assert "generator object" in notebook("%%ranks 0\n(i for i in range(3))")

    def test_with_a_repr_that_fails(self, notebook: Notebook) -> None:
        text = notebook("%%ranks 0\nclass Bad:\n    def __repr__(self):\n        raise ValueError('no words')\nBad()")
        assert "no words" in text
        assert "[rank 0] <__main__.Bad object at" in text

    def test_long_ones_are_cut(self, notebook: Notebook) -> None:
        text = notebook("%%ranks 0\n'a' * 10**6")
        assert len(text) < 30_000
        assert "more characters" in text

    def test_a_frame_and_a_figure_come_as_in_a_notebook(self, notebook: Notebook) -> None:
        shown: list[dict[str, object]] = []
        notebook.shell.display_pub.publish = lambda data, **options: shown.append(data)
        notebook("%%ranks 1\nimport pandas as pd\npd.DataFrame({'column': [3]})")
        notebook("%%ranks 1\nimport plotly.graph_objects as go\ngo.Figure(go.Bar(y=[7]))")
        assert "[rank 1]" in str(shown[0]["text/html"])
        assert "<th>column</th>" in str(shown[0]["text/html"])
        assert "application/vnd.plotly.v1+json" in shown[1]

    def test_what_is_displayed_keeps_its_place_among_the_prints(self, notebook: Notebook) -> None:
        notebook.shell.display_pub.publish = lambda data, **options: print("shown", data["text/html"])
        notebook.shell.display_pub.clear_output = lambda wait=False: print("cleared", wait)
        text = notebook(
            """\
            %%ranks 1
            from IPython.display import HTML, clear_output
            for i in range(3):
                clear_output(wait=True)
                print("before", i)
                display(HTML("<b>bold</b>"))
                print("after", i)
            """
        )
        shown = "shown <div><code>[rank 1]</code></div><b>bold</b>"
        assert text.splitlines() == [
            line for i in range(3) for line in ("cleared True", f"[rank 1] before {i}", shown, f"[rank 1] after {i}")
        ]


class TestFaults:
    def test_lines_are_numbered_as_in_the_notebook(self, notebook: Notebook) -> None:
        text = notebook.fails("%%ranks\n\n\ndef f(a):\n    return 1 / a  # this line\n\nif rank == 1:\n    f(0)")
        assert "RankError: rank 1 of 2 raised ZeroDivisionError in %%ranks" in text
        assert re.search(r"line 8, in <module>\n\s+f\(0\)\n.*line 5, in f\n\s+return 1 / a  # this line", text)
        assert "tplab" not in text  # neither the magic's frames nor the ranks' own

    def test_leave_the_namespace(self, notebook: Notebook) -> None:
        notebook.fails("%%ranks\nkept = 11\nraise KeyError('gone')")
        assert notebook("%%ranks 0\nkept") == "[rank 0] 11\n"

    @pytest.mark.parametrize(
        ("code", "line"),
        [("a = 1\nb = = 2", 3), ("\nif a:\nb", 4), ("return 1", 2), ("x = 'open", 2), ("await = 3", 2)],
    )
    def test_syntax_is_checked_before_anything_is_sent(
        self, notebook: Notebook, cluster: Cluster, code: str, line: int
    ) -> None:
        calls: list[object] = []
        submit, cluster.submit = cluster.submit, lambda *args, **kwargs: calls.append(args)
        try:
            text = notebook.fails(f"%%ranks\n{code}")
        finally:
            cluster.submit = submit
        assert calls == []
        assert f":{line}\n" in text.rpartition("File <")[2]

    @pytest.mark.parametrize(
        ("code", "words"),
        [
            ("sys.exit(3)", "SystemExit: 3"),
            ("exit()", "SystemExit"),
            ("input('?')", "a rank, which has no keyboard: ask in the notebook"),
            ("breakpoint()", "a rank, which has no keyboard: print there"),
            ("%no_such_magic", "Line magic function `%no_such_magic` not found"),
            ("unknown", "name 'unknown' is not defined"),
            ("in_the_notebook", "`%ranks push in_the_notebook` sends it to the ranks"),
            ("import asyncio\nasync def f():\n    await asyncio.sleep(0)\n    1 / 0\nawait f()", "line 5, in f"),
        ],
    )
    def test_say_what_cannot_be(self, notebook: Notebook, code: str, words: str) -> None:
        notebook("in_the_notebook = 3")
        text = notebook.fails(f"%%ranks\nimport sys\n{code}" if "asyncio" not in code else f"%%ranks\n{code}")
        assert words in text
        assert "asyncio/" not in text
        assert notebook("%%ranks 1\n1") == "[rank 1] 1\n"

    def test_hang_past_the_time_limit(self, notebook: Notebook) -> None:
        notebook("%%ranks\nweights = 1")
        text = notebook.fails("%%ranks 1 --timeout 0.5\ndist.all_reduce(torch.ones(1))  # alone")
        assert "RankTimeout: rank 1 of 2 did not answer within 0.5 s in %%ranks" in text
        assert "# alone" in text
        assert "Only rank 1 took part" in text
        text = notebook.fails("%%ranks\nweights")
        assert "the ranks were replaced (a fault, an interrupt, a restart)" in text
        assert "cells from before that have to run again" in text
        assert "replaced" not in notebook("%%ranks\nweights = 2")  # once
        assert notebook("%%ranks 0\nweights") == "[rank 0] 2\n"

    def test_death_between_two_cells(self, notebook: Notebook, cluster: Cluster) -> None:
        notebook("%%ranks\nweights = 1")
        os.kill(cluster.pids[1], signal.SIGKILL)
        while cluster.pids:
            time.sleep(0.01)
        assert "replaced" in notebook.fails("%%ranks 0\nweights")

    def test_interrupt_of_python_keeps_the_namespace(self, notebook: Notebook, tmp_path: Path) -> None:
        notebook("%%ranks\nkept = 5")
        ident = threading.main_thread().ident

        def interrupt() -> None:
            while len([*tmp_path.iterdir()]) < 2:  # a busy machine takes its time until both ranks are in the cell
                time.sleep(0.01)
            signal.pthread_kill(ident, signal.SIGINT)

        threading.Thread(target=interrupt, daemon=True).start()
        text = notebook.fails(f"%%ranks\nopen({str(tmp_path / 'at')!r} + str(rank), 'w')\nwhile True:\n    pass")
        assert "KeyboardInterrupt" in text
        assert notebook("%%ranks 1\nkept") == "[rank 1] 5\n"


class TestLine:
    def test_pull(self, notebook: Notebook) -> None:
        notebook("%%ranks\nx = torch.tensor([rank + 1.0])")
        notebook("xs = %ranks pull x")
        assert [x.item() for x in notebook.shell.user_ns["xs"]] == [1.0, 2.0]
        notebook("ds = %ranks pull {'a': [rank]}['a']\nonly = %ranks pull -r 1 x.item()")
        assert notebook.shell.user_ns["ds"] == [[0], [1]]
        assert notebook.shell.user_ns["only"] == [2.0]
        assert "[3, 3]" in notebook("%ranks import asyncio\n%ranks pull await asyncio.sleep(0, 3)")
        assert "generator" in notebook.fails("%ranks pull (i for i in x)")
        assert "SyntaxError" in notebook.fails("%ranks pull x = 3")

    def test_push(self, notebook: Notebook) -> None:
        notebook("import threading, pandas as pd\nframe, k, lock = pd.DataFrame({'a': [1]}), 5, threading.Lock()")
        notebook("%ranks push frame, k")
        assert "[rank 1] 6" in notebook("%ranks int(frame.a.sum()) + k")
        assert "TypeError: lock cannot be sent" in notebook.fails("%ranks push k lock")
        assert "no variable 'nothing'" in notebook.fails("%ranks push nothing")

    def test_python(self, notebook: Notebook) -> None:
        notebook("%ranks stop = 5")
        assert notebook("%ranks stop + rank") == "[rank 0] 5\n[rank 1] 6\n"
        assert notebook("for i in range(2):\n    %ranks -1 if rank else None") == "[rank 1] -1\n" * 2
        assert "neither pull, push" in notebook.fails("%ranks pul x")

    def test_status(self, notebook: Notebook, cluster: Cluster) -> None:
        notebook("%%ranks\nseen = 1")
        text = notebook("%ranks status")
        assert f"[rank 1] process {cluster.pids[1]}, cpu; defined: " in text
        assert "seen" in text
        assert text == notebook("%ranks")

    def test_use(self, notebook: Notebook, cluster: Cluster) -> None:
        notebook("%ranks use cluster.resized(1)")
        assert notebook("%%ranks\nworld_size") == "[rank 0] 1\n"
        notebook("%ranks use cluster\nthe = %ranks cluster")
        assert notebook.shell.user_ns["the"] is cluster
        assert "takes a Cluster or a Pool" in notebook.fails("%ranks use 3")
        assert "is not defined" in notebook.fails("%ranks use nobody")

    def test_help(self, notebook: Notebook) -> None:
        assert "%%ranks [--timeout" in notebook("%%ranks --help\n1").replace("TIMEOUT", "")
        assert "values = %ranks pull x" in notebook("%ranks --help")

    @pytest.mark.parametrize(
        ("code", "words"),
        [
            ("%%ranks 2\n1", "there are 2 ranks, 0 to 1"),
            ("%%ranks one\n1", "'one' names no ranks"),
            ("%%ranks --timeout 0\n1", "--timeout must be a number above 0"),
            ("%%ranks -n 0\n1", "-n must be a whole number"),
            ("%%ranks -n 3\n1", "-n must be at most the 2 ranks"),
            ("%%ranks --tiemout 3\n1", "unrecognized arguments"),
            ("%ranks pull", "say what"),
            ("%ranks push", "see %ranks --help"),
            ("%ranks start -n 99", "-n must be a whole number from 1 to 64"),
        ],
    )
    def test_refuses(self, notebook: Notebook, code: str, words: str) -> None:
        text = notebook.fails(code)
        assert f"UsageError: {text.partition('UsageError: ')[2]}" == text
        assert words in text


def test_which_ranks() -> None:
    for text, chosen in {
        "": (0, 1, 2, 3),
        "all": (0, 1, 2, 3),
        "0,2": (0, 2),
        "2 0": (0, 2),
        "[0, 2]": (0, 2),
        "0-1": (0, 1),
        "0:2": (0, 1),
        "1:": (1, 2, 3),
        ":1,3": (0, 3),
    }.items():
        assert _chosen(text.split(), 4) == chosen


def test_commands_are_told_from_python() -> None:
    commands = ["pull x", "pull (x, y)", "pull -r 0 x", "pull -x", "push a b", "stop", "status ", "--help", "use a.b"]
    python = ["pull = 3", "stop += 1", "status.x", "pull(x)", "stop - 1", "push, pull", "use in names", "pulls", "x"]
    assert [line for line in commands if not _is_command(line)] == []
    assert [line for line in python if _is_command(line)] == []


class TestWhichCluster:
    @pytest.fixture
    def bare(self, capsys: pytest.CaptureFixture[str]) -> Notebook:
        return Notebook(capsys)

    def test_one_is_started_where_there_is_none(self, bare: Notebook) -> None:
        assert "no ranks are running" in bare("%ranks status")
        text = bare("%%ranks\nworld_size")
        assert re.search(r"%%ranks started (gloo|nccl) · 2 ranks.*\n\[rank 0\] 2\n\[rank 1\] 2\n", text)
        text = bare("%ranks start -n 1\n%ranks world_size")
        assert text.endswith(" · 1 ranks.\n[rank 0] 1\n") or text.endswith(" · 1 rank.\n[rank 0] 1\n")
        bare("%ranks stop")
        assert "there are no ranks" in bare("%ranks stop")

    def test_the_pool_that_panels_share(self, bare: Notebook, cluster: Cluster) -> None:
        pool = Pool(1, "gloo")
        bare.shell.user_ns["pool"] = pool
        try:
            bare("%%ranks\nmine = 1")
            assert pool.cluster.run(lambda rank: rank.world_size) == [1]
            bare("%ranks start -n 2")
            assert pool.num_ranks == 2
            assert "is not defined" in bare.fails("%%ranks\nmine")
            bare.shell.user_ns["cluster"] = cluster
            assert bare("%%ranks\nworld_size").startswith("[rank 0]")  # still the pool's: the last cell ran there
            bare("%ranks stop")
            assert pool.cluster.closed is False  # the next run starts fresh ranks
        finally:
            pool.close()

    def test_two_clusters(self, bare: Notebook, cluster: Cluster) -> None:
        bare.shell.user_ns |= {"all_of_them": cluster, "first": cluster.resized(1)}
        text = bare("%%ranks\nworld_size")
        assert text == "%%ranks runs on `first`; `%ranks use all_of_them` takes the other.\n[rank 0] 1\n"
        assert bare("%ranks use all_of_them\n%ranks world_size") == "[rank 0] 2\n[rank 1] 2\n"


def test_time_limit_of_all_cells(notebook: Notebook) -> None:
    notebook("%config RanksMagics.timeout = 0.5")
    assert "within 0.5 s" in notebook.fails("%%ranks\nimport time; time.sleep(30)")
