"""The doctor: findings, their words, and the command's exit status."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from tplab import cli
from tplab.cluster.admission import FreeMemory
from tplab.lab import checks as module
from tplab.lab import install
from tplab.lab.checks import Check, PreflightTable, preflight, preflight_frame
from tplab.lab.install import verdict


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def test_this_machine_has_no_problem() -> None:
    """The tests run where the lab is supposed to work: every problem found here is a real one."""
    checks = preflight()
    assert [check for check in checks if check.status == "problem"] == []
    assert {"Python", "torch", "gloo", "CPU cores", "memory", "GPUs", "links", "plotly", "lab extensions"} <= {
        check.name for check in checks
    }


def test_what_is_not_ok_says_what_it_means() -> None:
    for check in preflight():
        assert check.status == "ok" or check.meaning


def test_little_memory_is_a_problem_with_a_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "free_memory", lambda: FreeMemory(num_bytes=400_000_000, where="the container's limit"))
    memory = by_name(preflight())["memory"]
    assert memory.status == "problem"
    assert "container" in memory.found
    assert memory.cure


def test_a_missing_package_is_named_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "anywidget", None)
    missing = by_name(preflight())["tplab[notebook]"]
    assert missing.status == "problem"
    assert missing.found == "anywidget missing"
    assert missing.cure == 'pip install "tplab[notebook]"'


def test_a_missing_lab_extension_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    import jupyter_core.paths

    monkeypatch.setattr(jupyter_core.paths, "jupyter_path", lambda *_: [str(tmp_path)])
    check = by_name(preflight())["lab extensions"]
    assert check.status == "problem"
    assert "plotly" in check.found
    assert "ipywidgets" in check.found


@pytest.mark.timeout(60)
def test_doctor_runs_ranks_and_exits_with_zero(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "all-reduce of 1 and 2 gives 3" in out
    assert "a fresh one starts and imports tplab" in out
    assert out.splitlines()[-1].startswith("READY: no problems found")


def test_doctor_exits_with_one_when_something_is_wrong(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "free_memory", lambda: FreeMemory(num_bytes=100_000_000, where="this machine"))
    assert cli.main(["doctor", "--no-ranks", "--json"]) == 1
    found = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert found["memory"]["status"] == "problem"
    assert "two ranks" not in found


def test_tables_escape_and_keep_every_row() -> None:
    checks = [Check(name="a", found="<b>"), Check(name="b", found="x", status="problem", meaning="m.", cure="c.")]
    assert "<b>" not in PreflightTable(checks)._repr_html_()
    assert "PROBLEM" in repr(PreflightTable(checks))
    assert preflight_frame(checks)["status"].tolist() == ["ok", "problem"]


def test_what_is_well_takes_one_line_and_what_is_not_stands_below_it() -> None:
    well = [Check(name="torch", found="2.13"), Check(name="plotly", found="7.1"), Check(name="memory", found="9 GB")]
    page = PreflightTable(well)._repr_html_()
    summary, rest = page.split("</summary>")
    assert "3 checks: torch 2.13, memory 9 GB" in summary
    assert page.endswith("</details>")
    assert "plotly" in rest
    bad = Check(name="gloo", found="missing", status="problem", meaning="No ranks.", cure="Install it.")
    page = PreflightTable([*well, bad])._repr_html_()
    assert "3 checks" in page
    assert "No ranks. Install it." in page.split("</details>")[1]


def test_the_verdict_is_one_line_that_names_the_problems() -> None:
    good, bad = Check(name="a", found="x"), Check(name="disk", found="x", status="problem", meaning="m.", cure="c.")
    assert verdict([good]).startswith("READY")
    assert verdict([good, bad, bad]).startswith("NOT READY: 2 problems (disk, disk)")
    assert "\n" not in verdict([good, bad])


def test_a_folder_that_cannot_be_written_is_a_problem_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(install.tempfile, "TemporaryFile", refuse)
    found = by_name(install.install_checks())["notebooks' folder"]
    assert found.status == "problem"
    assert "tplab lab ~/tplab-lab" in found.cure


def test_a_full_disk_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")._replace(free=20_000_000)
    monkeypatch.setattr(install.shutil, "disk_usage", lambda place: usage)
    assert by_name(install.install_checks())["disk"].status == "problem"


def test_a_kernel_of_another_environment_or_none_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A kernelspec that names a Python without tplab, as one left by another environment does."""
    monkeypatch.setattr(install, "_LOOK", "import no_such_lab")
    assert install.kernel_check().found == "cannot import tplab"
    spec = tmp_path / "kernels" / "python3"
    spec.mkdir(parents=True)
    (spec / "kernel.json").write_text(json.dumps({"argv": ["/no/python", "{connection_file}"], "display_name": "x"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "0")
    monkeypatch.setattr("jupyter_client.kernelspec.NATIVE_KERNEL_NAME", "none")
    broken = install.kernel_check()
    assert (broken.status, broken.found) == ("problem", "does not start")


def test_the_notebooks_folder_is_the_kernels_own_and_told_without_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "00-start-here.ipynb").touch()
    monkeypatch.chdir(tmp_path)
    found = {check.name: check.found for check in install.install_checks()}
    assert found["notebooks' folder"] == "this folder may be written"
    assert str(tmp_path) not in found["disk"]
