"""Modules that are edited after the ranks started, and what else of the kernel changes meanwhile."""

import importlib
import os
import sys
import time
import types

import pytest

from tplab.cluster import RankError, follow
from tplab.cluster.sources import is_users
from tplab.cluster.surroundings import describe_changes

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """Write a module, as an editor does: each time another second, unless ``age`` says when."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    written = []

    def write(name, text, age=None):
        path = tmp_path / f"{name.replace('.', '/')}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        at = time.time() - (60 - len(written) if age is None else age)
        os.utime(path, (at, at))
        written.append(name)
        importlib.invalidate_caches()
        name = name.removesuffix(".__init__")
        return importlib.import_module(name) if name not in sys.modules else sys.modules[name]

    before = set(sys.modules)
    yield write
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in {one.partition(".")[0] for one in written}:
            del sys.modules[name]


class TestLoadedAgain:
    def test_edited_module(self, cluster2, modules, capfd):
        module = modules("edited_one", "def factor(rank): return 1\n")
        assert cluster2.run(module.factor) == [1, 1]
        modules("edited_one", "def factor(rank): return 1000\n")
        assert cluster2.run(module.factor) == [1, 1]  # as in the kernel, which has not loaded it again
        importlib.reload(module)
        pids = cluster2.pids
        assert cluster2.run(module.factor) == [1000, 1000]
        assert cluster2.run(lambda rank: module.factor(rank)) == [1000, 1000]
        assert cluster2.pids == pids
        assert "tplab" not in capfd.readouterr().err

    def test_constant(self, cluster2, modules):
        module = modules("edited_constant", "SIZE = 1\n")

        def size(rank):
            import edited_constant

            return edited_constant.SIZE

        assert cluster2.run(size) == [1, 1]
        modules("edited_constant", "SIZE = 2\n")
        importlib.reload(module)
        assert cluster2.resized(1).run(size) == [2]
        assert cluster2.run(size) == [2, 2]

    def test_same_size_in_the_same_second(self, cluster2, modules):
        """Python takes the .pyc of the first version for the second one then; here the kernel reads its source."""
        module = modules("edited_quickly", "def value(rank): return 1\n", age=30)
        assert cluster2.run(module.value) == [1, 1]
        file = module.__file__
        with open(file, "w") as rewritten:
            rewritten.write("def value(rank): return 2\n")
        os.utime(file, (int(os.stat(module.__cached__).st_mtime) + 0.5,) * 2)
        os.remove(module.__cached__)
        importlib.reload(module)
        with open(file, "w") as rewritten:
            rewritten.write("def value(rank): return 3\n")
        os.utime(file, (int(os.stat(module.__cached__).st_mtime) + 0.7,) * 2)
        sys.dont_write_bytecode = True
        cached = module.__cached__
        os.rename(cached, f"{cached}.aside")
        importlib.reload(module)
        os.rename(f"{cached}.aside", cached)
        assert module.value(None) == 3
        assert cluster2.run(module.value) == [3, 3]

    def test_copies_in_other_modules_are_as_in_the_kernel(self, cluster2, modules):
        helper = modules("edited_helper", "def f(): return 1\n")
        main = modules("edited_main", "from edited_helper import f\ndef g(rank): return f()\n")
        assert cluster2.run(main.g) == [1, 1]
        modules("edited_helper", "def f(): return 2\n")
        importlib.reload(helper)
        assert cluster2.run(main.g) == [main.g(None)] * 2 == [1, 1]
        importlib.reload(main)  # whose file is what it was
        assert cluster2.run(main.g) == [main.g(None)] * 2 == [2, 2]

    @pytest.mark.parametrize("first", ["a", "d"])
    def test_both_edited(self, cluster2, modules, first):
        """What is imported is loaded first, whatever it is called and though the earlier version did not import it."""
        second = {"a": "b", "d": "c"}[first]
        main = modules(f"edited_{first}_of_two", "def g(rank): return 1\n")
        helper = modules(f"edited_{second}_of_two", "X = 1\n")
        cluster2.run(lambda rank: (main.g(rank), helper.X))
        modules(f"edited_{second}_of_two", "X = 2\n")
        modules(f"edited_{first}_of_two", f"from edited_{second}_of_two import X\ndef g(rank): return X\n")
        importlib.reload(helper)
        importlib.reload(main)
        assert cluster2.run(main.g) == [2, 2]

    def test_package_and_module_without_init(self, cluster2, modules):
        package = modules("edited_package.__init__", "def f(rank): return 0\n")
        part = modules("edited_package.part", "def f(rank): return 1\n")
        modules("edited_package.__init__", "from edited_package.part import f\n")
        importlib.reload(package)
        name_space = modules("edited_space.part", "def f(rank): return 1\n")
        assert cluster2.run(lambda rank: (package.f(rank), name_space.f(rank))) == [(1, 1)] * 2
        modules("edited_package.part", "def f(rank): return 2\n")
        modules("edited_space.part", "def f(rank): return 3\n")
        for module in (part, package, name_space):
            importlib.reload(module)
        assert cluster2.run(lambda rank: (package.f(rank), name_space.f(rank))) == [(2, 3)] * 2

    def test_syntax_error(self, cluster2, modules):
        module = modules("edited_badly", "def f(rank): return 1\n")
        assert cluster2.run(module.f) == [1, 1]
        modules("edited_badly", "def f(rank) return 2\n")
        with pytest.raises(SyntaxError):
            importlib.reload(module)
        assert cluster2.run(module.f) == [1, 1]
        modules("edited_badly", "def f(rank): return 3\n")
        importlib.reload(module)
        assert cluster2.run(module.f) == [3, 3]

    def test_that_fails_on_the_ranks(self, cluster2, modules):
        module = modules("edited_for_one", "def f(rank): return 1\n")
        assert cluster2.run(module.f) == [1, 1]
        modules("edited_for_one", "import sys\nif 'pytest' not in sys.modules: raise OSError('not here')\n")
        importlib.reload(module)
        with pytest.raises(RankError, match=r"edited_for_one .*cannot be loaded again .*not here.*restart\(\)"):
            cluster2.run(module.f)
        modules("edited_for_one", "def f(rank): return 3\n")
        importlib.reload(module)
        assert cluster2.run(module.f) == [3, 3]

    def test_module_that_only_the_ranks_import(self, cluster2, modules, tmp_path):
        """The kernel has no version of it: as if it imported it now."""
        modules("edited_beside", "")  # so that the ranks have the path

        def call(rank):
            from edited_there import value

            return value()

        for value in (1, 2):
            (tmp_path / "edited_part.py").write_text(f"def value(): return {value}\n")
            (tmp_path / "edited_there.py").write_text(f"from edited_part import value  # {value}\n")
            assert cluster2.run(call) == [value] * 2

    def test_autoreload(self, cluster2, modules):
        """In place: copies and objects of before have the new code, in the kernel and on the ranks."""
        from IPython.core.interactiveshell import InteractiveShell
        from IPython.extensions.autoreload import ModuleReloader

        reloader = ModuleReloader(InteractiveShell())
        reloader.enabled = reloader.check_all = True
        helper = modules("auto_helper", "K = 1\ndef f(): return 1\nclass A:\n    def v(self): return 1\n")
        main = modules(
            "auto_main", "import auto_helper\nfrom auto_helper import f, A\n"
            "def g(rank): return f(), auto_helper.K, rank.store.setdefault('a', A()).v()\n"
        )  # fmt: skip
        reloader.check()
        assert cluster2.run(main.g) == [(1, 1, 1)] * 2
        modules("auto_helper", "K = 1\ndef f(): return 2\nclass A:\n    def v(self): return 1\n")
        reloader.check()
        assert helper.f() == 2
        assert cluster2.run(main.g) == [(2, 1, 1)] * 2
        modules("auto_helper", "K = 3\ndef f(): return 3\nclass A:\n    def v(self): return 3\n")
        reloader.check()
        assert cluster2.run(main.g) == [(3, 3, 3)] * 2
        cluster2.run(lambda rank: rank.store.clear())

    def test_module_that_must_not_be_asked(self, cluster2, modules):
        """A proxy that raises whatever it is asked, in a module and among the modules."""

        class Proxy:
            def __getattribute__(self, name):
                raise RuntimeError("not now")

        module = modules("edited_proxy", "def f(rank): return 1\n")
        sys.modules["edited_proxy.part"] = module.proxy = Proxy()
        assert cluster2.run(module.f) == [1, 1]
        modules("edited_proxy", "def f(rank): return 2\n")
        importlib.reload(module)
        assert cluster2.run(module.f) == [2, 2]


class TestSaid:
    def test_kernel_has_the_older(self, cluster2, modules, capfd):
        module = modules("edited_not_loaded", "def f(): return 1\n")
        modules("edited_not_loaded", "def f(): return 2\n")

        def call(rank):
            import edited_not_loaded

            return edited_not_loaded.f()

        assert cluster2.run(call) == [2, 2]
        assert module.f() == 1
        said = capfd.readouterr().err
        assert said.count("edited_not_loaded.py) was edited, and this kernel holds an older version") == 1
        assert "importlib.reload(edited_not_loaded)" in said
        cluster2.run(call)
        assert not capfd.readouterr().err
        importlib.reload(module)
        cluster2.run(call)
        assert not capfd.readouterr().err

    def test_copies_that_fresh_ranks_do_not_have(self, cluster, modules, capfd):
        helper = modules("edited_helper", "def f(): return 1\n")
        main = modules("edited_main", "from edited_helper import f\ndef g(rank): return f()\n")
        assert cluster.run(main.g) == [1, 1]
        modules("edited_helper", "def f(): return 2\n")
        importlib.reload(helper)
        assert cluster.run(main.g) == [1, 1]
        assert not capfd.readouterr().err
        cluster.restart()
        assert cluster.run(main.g) == [2, 2]
        assert "edited_main holds f of an older edited_helper in this kernel" in capfd.readouterr().err
        importlib.reload(main)
        assert cluster.run(main.g) == [main.g(None)] * 2 == [2, 2]
        assert not capfd.readouterr().err

    def test_objects_of_the_older_version(self, cluster2, modules, capfd):
        text = "class Counter:\n    def value(self): return {}\n"
        module = modules("edited_class", text.format(1))

        def value(rank):
            import edited_class

            return rank.store.setdefault("counter", [edited_class.Counter()])[0].value()

        assert cluster2.run(value) == [1, 1]
        modules("edited_class", text.format(2))
        importlib.reload(module)
        assert cluster2.run(value) == [1, 1]
        assert "rank.store keeps objects of its older version (Counter)" in capfd.readouterr().err
        cluster2.run(lambda rank: rank.store.clear())
        assert cluster2.run(value) == [2, 2]
        cluster2.run(lambda rank: rank.store.clear())

    def test_another_file(self, cluster2, modules, tmp_path, monkeypatch, capfd):
        for name, value in (("one", 1), ("other", 2)):
            (tmp_path / name).mkdir()
            (tmp_path / name / "edited_twin.py").write_text(f"def f(): return {value}\n")

        def call(rank):
            import edited_twin

            return edited_twin.f()

        monkeypatch.syspath_prepend(str(tmp_path / "other"))
        assert cluster2.run(call) == [2, 2]
        monkeypatch.syspath_prepend(str(tmp_path / "one"))
        assert importlib.import_module("edited_twin").f() == 1
        cluster2.run(call)
        assert "edited_twin.py in this kernel, but" in capfd.readouterr().err

    def test_module_without_a_file(self, cluster2, modules, tmp_path):
        module = modules("edited_gone", "def f(rank): return 1\n")
        os.remove(module.__file__)
        importlib.invalidate_caches()
        with pytest.raises(RankError, match=r"No module named 'edited_gone'.*register_pickle_by_value"):
            cluster2.run(module.f)

    def test_variable(self, cluster2, monkeypatch, capfd):
        def variable(rank):
            return os.environ.get("OF_THIS_TEST")

        monkeypatch.setenv("OF_THIS_TEST", "a secret")
        monkeypatch.setenv("COLUMNS", "77")
        assert cluster2.run(variable) == [None, None]
        said = capfd.readouterr().err
        assert "OF_THIS_TEST (new). cluster.restart()" in said
        assert "secret" not in said
        assert "COLUMNS" not in said
        cluster2.run(variable)
        assert not capfd.readouterr().err
        monkeypatch.setenv("OF_THIS_TEST", "b")
        cluster2.run(variable)
        assert "OF_THIS_TEST" in capfd.readouterr().err
        monkeypatch.delenv("OF_THIS_TEST")
        cluster2.run(variable)
        assert not capfd.readouterr().err

    def test_changes_of_the_environment(self):
        before = {"A": "1", "B": "1", "JPY_PARENT_PID": "1", "LINES": "1"}
        assert describe_changes(before, before | {"LINES": "2"}) == ("", "")
        key, text = describe_changes(before, {"A": "2", "C": "1"})
        assert "A (changed), B (removed), C (new)." in text
        assert key != describe_changes(before, {"A": "3", "C": "1"})[0]
        assert "A new Cluster takes them over" in describe_changes({}, {"CUDA_VISIBLE_DEVICES": "1"})[1]

    def test_folder(self, cluster2, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert cluster2.run(lambda rank: os.getcwd()) == [str(tmp_path)] * 2


def test_a_thread_imports_while_the_rank_looks(tmp_path, monkeypatch):
    """One that outlived its run: a look at the modules is not spoiled by it."""
    files = [tmp_path / f"module_{number}.py" for number in range(3)]
    follower = follow.Follower({})
    for file in files:
        file.touch()
        monkeypatch.setitem(sys.modules, file.stem, types.ModuleType(file.stem))
    stamp_of = follow.stamp_of

    for file in files:
        follower._note(file.stem, str(file))
    late = follower.loaded.popitem()

    def import_meanwhile(file):
        follower.loaded.update([late])
        return stamp_of(file)

    monkeypatch.setattr(follow, "stamp_of", import_meanwhile)
    assert list(follower.follow({})) == []
    assert set(follower.loaded) == {file.stem for file in files}


def test_whose_modules():
    assert is_users("/srv/model.py")
    assert not is_users(os.__file__)
    assert not is_users(pytest.__file__)
    assert not is_users("model.py")
