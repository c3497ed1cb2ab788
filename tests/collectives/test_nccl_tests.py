"""What nccl-tests and rccl-tests print, in all its forms, is read right, or refused with the way out."""

import io
import json
import sys
import time

import pytest

from tests.collectives.nccl_output import as_json, factor, printed, rank_line, row, us_of
from tplab.collectives import nccl_frame, read_nccl
from tplab.lab.figures import busbw_figure, latency_figure

KIB, MIB = 1 << 10, 1 << 20


@pytest.fixture
def read(tmp_path):
    def reading(text, name="out.txt", **more):
        path = tmp_path / name
        path.write_text(text)
        return read_nccl(path, **more)

    return reading


class TestForms:
    def test_the_usual_one(self, read):
        (test,) = read(printed())
        assert (test.collective, test.num_ranks, test.num_hosts, test.iterations) == ("all-reduce", 8, 1, 20)
        assert test.badge == "RECORDED nccl-tests · 8 x NVIDIA H100 80GB HBM3 · 1 host"
        assert test.curve[MIB] == pytest.approx(us_of(MIB), rel=1e-3)
        assert len(test.curve) == 26
        assert not test.graph

    @pytest.mark.parametrize(
        ("name", "collective"),
        [
            ("all_gather", "all-gather"), ("reduce_scatter", "reduce-scatter"), ("alltoall", "all-to-all"),
            ("sendrecv", "point-to-point"), ("broadcast", "broadcast"), ("all_reduce", "all-reduce"),
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("starting", [True, False])
    @pytest.mark.parametrize("n", [2, 8])
    def test_every_test_is_told_from_its_columns_too(self, read, name, collective, starting, n):
        (test,) = read(printed(name, n, starting=starting))
        assert (test.collective, test.num_ranks) == (collective, n)

    def test_older_ones_have_a_deviation_and_no_root(self, read):
        lines = [
            "# nThread 1 nGpus 4 minBytes 8 maxBytes 134217728 step: 2(factor) warmup iters: 5 iters: 20 ",
            *(f"#   Rank  {i} Pid  38119 on dgx device  {i} [0x0{i}] Tesla V100-SXM2-16GB" for i in range(4)),
            "#       size    count    type   redop     time   algbw   busbw  error     time   algbw   busbw  error",
            "     1048576   262144   float     sum    51.20   20.48   30.72  1e-06    50.01   20.97   31.45  1e-06",
            "    16777216  4194304   float     sum   209.70   80.01  120.01  2e-06   209.70   80.01  120.01    N/A",
            "# Out of bounds values : 0 OK",
        ]
        (test,) = read("\n".join(lines))
        assert test.curve == {MIB: 51.2, 16 * MIB: 209.7}
        assert (test.collective, test.num_ranks, test.device) == ("all-reduce", 4, "Tesla V100-SXM2-16GB")

    def test_older_ones_of_other_tests_have_a_root_and_no_reduction(self, read):
        rows = [
            "# nThread 1 nGpus 4 minBytes 8 maxBytes 1 step: 2(factor) warmup iters: 5 iters: 20 validation: 1",
            "#       size    count    type    root     time   algbw   busbw  error     time   algbw   busbw  error",
            "     1048576   262144   float       0       51   20.56   20.56  0e+00    50.01   20.97   20.97  0e+00",
            "    16777216  4194304   float       0      209   80.27   80.27  0e+00      209   80.27   80.27  0e+00",
        ]
        (test,) = read("\n".join(rows))
        assert (test.collective, test.curve[MIB]) == ("broadcast", 51.0)

    @pytest.mark.parametrize(
        "around",
        [
            "[1,0]<stdout>:{}", "[1,0]<stdout>: {}", " 0: {}", "2026-11-28T10:00:00.123456Z stdout F {}", "> {}",
            "    {}", "\x1b[32m{}\x1b[0m", "launcher-x7k: {}", "{}   2026-11-28 10:00:00", "{}\r", "worker-0 | {}",
        ],
    )  # fmt: skip
    def test_inside_what_launchers_and_reports_put_around_it(self, read, around):
        text = "\n".join(around.format(line) for line in printed(n=4).splitlines())
        (test,) = read(text)
        assert (test.num_ranks, len(test.curve), test.device) == (4, 26, "NVIDIA H100 80GB HBM3")

    def test_messages_of_nccl_between_the_rows(self, read):
        chatter = "node-0:123:456 [0] NCCL INFO Channel 00/02 : 0 1 2 3 4 5 6 7"
        text = f"\n{chatter}\n".join(printed().splitlines())
        said = "NCCL version 2.21.5+cuda12.4\nnode-0:1:1 [0] NCCL INFO NVLS multicast support is available on dev 0\n"
        text = said + text
        (test,) = read(text)
        assert len(test.curve) == 26
        assert test.versions["nccl"] == "2.21.5+cuda12.4"
        assert any("sums in the switch (NVLS) here" in note for note in test.notes)

    def test_a_message_written_into_a_row_costs_that_row(self, read):
        lines = printed().splitlines()
        at = next(i for i, line in enumerate(lines) if line.split()[:1] == [str(MIB)])
        lines[at] = lines[at][:50] + "node-0:123:456 [0] NCCL INFO comm" + lines[at][50:]
        (test,) = read("\n".join(lines))
        assert MIB not in test.curve
        assert len(test.curve) == 25
        assert any("1 lines begin as rows" in note for note in test.notes)

    def test_variables_of_the_command_are_said(self, read):
        (test,) = read(f"mpirun -np 8 -x NCCL_NVLS_ENABLE=0 -x NCCL_ALGO=Ring ./all_reduce_perf -b 8\n{printed()}")
        assert any("NCCL_ALGO=Ring, NCCL_NVLS_ENABLE=0" in note for note in test.notes)
        assert not any("is not said" in note for note in test.notes)

    def test_cuda_graphs_and_iterations(self, read):
        (test,) = read(printed(graph=10, iters=100))
        assert test.graph
        assert test.iterations == 100
        assert set(test.frame()["launch_mode"]) == {"graph"}

    def test_times_of_each_iteration_beside(self, read):
        text = printed(n=2, sizes=())
        text = text.replace("#wrong     time", "#wrong  i_min   i_max   i_p99   i_cv%     time")
        text += "  1048576  262144  float  sum  -1  25.24  41.54  41.54  0  24.0  29.0  29.0  3.1  25.3  41.4  41.4  0"
        text += "  24.0  30  30  2\n"
        (test,) = read(text)
        assert test.curve == {MIB: 25.24}

    def test_rccl_tests(self, read):
        gpu = "AMD Instinct MI300X"
        text = printed(gpu=gpu).replace("# Using devices", "rccl-tests: Version develop:5272cd1\n# Using devices")
        (test,) = read(text)
        assert test.device == gpu
        assert test.versions["rccl-tests"] == "develop:5272cd1"

    def test_json(self, read):
        (test,) = read(as_json())
        assert (test.collective, test.num_ranks, test.device, test.started) == (
            *("all-reduce", 4, "NVIDIA H200", "2026-11-01 10:00:00"),
        )
        assert test.versions["nccl"] == "2.28.3"
        assert test.curve[MIB] == pytest.approx(us_of(MIB))
        assert any("NCCL_NVLS_ENABLE=0" in note for note in test.notes)
        assert not any("HOME" in note for note in test.notes)

    @pytest.mark.parametrize(("separator", "edge"), [(",", ""), (";", ""), (" | ", "|")])
    def test_tables_with_separators(self, read, separator, edge):
        lines = [
            edge + separator.join(line.split()) + edge for line in printed(n=2, sizes=(KIB, MIB)).splitlines()[-5:-3]
        ]
        (test,) = read(printed(n=2, sizes=(), end=False) + "\n".join(lines))
        assert list(test.curve) == [KIB, MIB]

    def test_calls_that_the_host_waits_for(self, read):
        text = printed().replace(
            "# Using", "# Blocking Enabled: wait for completion and barrier after each collective \n# Using"
        )
        assert any("waits for each call" in note for note in read(text)[0].notes)

    def test_standard_input(self, monkeypatch):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(printed().encode())))
        assert read_nccl("-")[0].num_ranks == 8

    def test_the_files_name_says_the_test_where_nothing_else_does(self, read):
        text = printed(n=2, sizes=(8, 16), starting=False)  # too short for bandwidths that would tell
        with pytest.raises(ValueError, match="collective must be given"):
            read(text)
        (test,) = read(text, "2026-sendrecv_perf-2gpus.log")
        assert (test.collective, test.num_ranks) == ("point-to-point", 2)
        assert read(text, collective="reduce-scatter")[0].collective == "reduce-scatter"


class TestRanks:
    def test_hosts_are_counted(self, read):
        (test,) = read(printed(n=16, hosts=2))
        assert (test.num_ranks, test.num_hosts) == (16, 2)

    @pytest.mark.parametrize("n", [3, 8, 16, 72])
    def test_without_their_lines_the_factor_between_the_bandwidths_says(self, read, n):
        text = "\n".join(row(size, us_of(size), factor("all_reduce", n)) for size in (MIB, 256 * MIB))
        (test,) = read(text)
        assert (test.num_ranks, test.num_hosts, test.device) == (n, None, "")
        assert any("which GPUs" in note for note in test.notes)

    def test_too_few_digits_do_not(self, read):
        text = "\n".join(row(size, us_of(size, 95.0, 5.0), factor("all_reduce", 128)) for size in (4 * KIB, 256 * KIB))
        with pytest.raises(ValueError, match=r"nothing says how many ranks.*too few digits.*Rank  0"):
            read(text)

    def test_the_last_of_their_lines_is_enough(self, read):
        lines = printed(n=16, hosts=2).splitlines()
        (test,) = read("\n".join(line for line in lines if "Rank" not in line or "Rank 15" in line))
        assert (test.num_ranks, test.num_hosts) == (16, None)
        assert any("1 of 16 lines" in note for note in test.notes)

    def test_what_contradicts_them_is_refused(self, read):
        with pytest.raises(ValueError, match=r"1\.5 times algorithm bandwidth.* of 8 ranks it is 1\.75"):
            read(_with_factor(8, 4))

    def test_two_groups_at_once(self, read):
        lines = [rank_line(r, group=r % 2) for r in range(8)]
        rows = [row(size, us_of(size), factor("all_reduce", 4)) for size in (MIB, 4 * MIB)]
        (test,) = read("\n".join([*lines, *rows]))
        assert test.num_ranks == 4
        assert any("2 groups ran at once" in note for note in test.notes)

    def test_two_kinds_of_gpu_are_said(self, read):
        text = printed(n=2).replace("80GB HBM3", "PCIe", 1)
        (test,) = read(text)
        assert any("several kinds" in note for note in test.notes)


def _with_factor(n, wrong_n):
    lines = printed(n=n, sizes=()).splitlines()
    return "\n".join([*lines, *(row(size, us_of(size), factor("all_reduce", wrong_n)) for size in (MIB, 64 * MIB))])


class TestSeveral:
    def test_in_one_file(self, read):
        text = (
            printed()
            + "# Collective test concluded: all_reduce_perf\n\n"
            + printed("sendrecv", 8)
            + printed("alltoall", 4)
        )
        tests = read(text)
        assert [(test.collective, test.num_ranks) for test in tests] == [
            *(("all-reduce", 8), ("point-to-point", 8), ("all-to-all", 4)),
        ]
        assert len(nccl_frame(tests)) == 3 * 26

    def test_of_one_program_after_its_name_once(self, read):
        text = "./build/all_reduce_perf -b 8 -e 256M\n" + printed(n=2, starting=False) + printed(n=2, starting=False)
        assert [test.collective for test in read(text)] == ["all-reduce", "all-reduce"]

    def test_one_that_failed_is_said_with_the_others(self, read):
        broken = printed(n=4, sizes=(), end=False) + "node: Test NCCL failure common.cu:1005 'unhandled system error'\n"
        (test,) = read(printed() + broken)
        assert any("left out" in note and "unhandled system error" in note for note in test.notes)

    def test_dtypes_and_repetitions(self, read):
        parts = [row(MIB, us, factor("all_reduce", 2), dtype=dtype) for dtype, us in (("float", 30.0), ("half", 40.0))]
        parts += [row(MIB, 44.0, factor("all_reduce", 2), dtype="half")]
        (test,) = read(printed(n=2, sizes=(), end=False) + "\n".join(parts))
        assert test.curve == {MIB: 42.0}
        assert list(test.frame()["dtype"]) == ["float32", "float16"]

    def test_operations_are_series_of_their_own(self, read):
        rows = [row(size, us_of(size), 1.0, redop=op) for op in ("sum", "prod") for size in (KIB, MIB, MIB, 4 * MIB)]
        (test,) = read(printed(n=2, sizes=(), end=False) + "\n".join(rows))
        figure = latency_figure(test.frame(), badge="RECORDED x")
        names = [trace.name for trace in figure.data]
        assert {"measured: library (sum), float32", "measured: library (prod), float32"} <= set(names)


class TestRefused:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "no table of nccl-tests: expected rows such as"),
            ("hello\n1 2 3\n", "no table of nccl-tests"),
            ("{}", "JSON, but not of nccl-tests"),
            ("size(B) count(elems) type time(us)\n33554432 33554432 uint8 768 40.69 40.69\n", "nccom-test"),
            ("# OSU MPI-CUDA Allreduce Latency Test v7.0\n# Size  Avg Latency\n4  12.2\n", "OSU's micro-benchmarks"),
            ("Bidirectional P2P=Enabled Bandwidth Matrix (GB/s)\n", "p2pBandwidthLatencyTest, which is not read"),
            ('{"config": {}, "results": 3}', "JSON, but not of nccl-tests"),
            (printed(sizes=()), "the beginning of a run of nccl-tests and no rows"),
            (printed(sizes=(), end=False) + "x: Test CUDA failure common.cu:732 'invalid'", "the test failed .*732"),
            (printed(n=1), "one GPU takes part|every process ran alone"),
            (printed(wrong="12"), "every result is wrong"),
            (printed().replace("   time ", "cputime "), r"the host's times \(-C 1\)"),
            (as_json().replace('"time"', '"cpu_time"'), r"the host's times \(-C 1\)"),
        ],
    )  # fmt: skip
    def test_with_the_way_out(self, read, text, message):
        with pytest.raises(ValueError, match=message):
            read(text)

    def test_processes_that_formed_no_group(self, read):
        alone = "\n".join(row(size, us_of(size), 0.0) for size in (MIB, MIB, 4 * MIB, 4 * MIB))
        with pytest.raises(ValueError, match=r"every process ran alone.*MPI=1"):
            read(alone)
        two = "\n".join([rank_line(0), rank_line(0).replace("1000", "2000")])
        with pytest.raises(ValueError, match=r"each rank 0: they formed no group.*MPI=1"):
            read(two)

    def test_zero_times(self, read):
        text = (
            printed(sizes=(), end=False)
            + "  1048576  262144  float  sum  -1  0.00  0.00  0.00  0  0.00  0.00  0.00  0\n"
        )
        with pytest.raises(ValueError, match="without a time"):
            read(text)

    def test_a_collective_that_is_none(self, read):
        with pytest.raises(ValueError, match="collective must be one of all-reduce"):
            read(printed(), collective="allreduce")

    @pytest.mark.parametrize(
        "text",
        [
            "node:1:1 [0] NCCL INFO Channel 00/02 : 0 1 2 3 4 5 6 7 via P2P/CUMEM\n" * 100_000,
            ("1 " * 1000 + "\n") * 4000,
            "1" * 16_000_000,
            ("Rank  0 Group  0 Pid 1 on h device 0 [0] X " * 40 + "\n") * 3000,
            (row(MIB, 30.0, 1.75) + "\n") * 9_000,
            '{"results": [' + "[" * 90 + "]" * 90 + "]}",
        ],
    )
    def test_soon_whatever_it_is(self, read, text):
        started = time.perf_counter()
        with pytest.raises(ValueError, match=r"."):
            read(text + "\n", collective="broadcast")
        assert time.perf_counter() - started < 4  # 2 on a machine that is not busy

    def test_too_many_rows(self, read):
        with pytest.raises(ValueError, match=r"at most 20,000"):
            read((row(MIB, 30.0, 1.75) + "\n") * 20_001)


class TestNotes:
    def test_wrong_results_are_said_and_left_out(self, read):
        lines = printed(sizes=(KIB, MIB)).splitlines()
        bad = row(64 * MIB, 400.0, factor("all_reduce", 8), wrong="7")
        (test,) = read("\n".join([*lines, bad]))
        assert list(test.curve) == [KIB, MIB]
        assert any("WRONG results left out: 67,108,864 bytes" in note for note in test.notes)

    def test_sizes_out_of_order_one_size_and_no_end(self, read):
        (test,) = read(printed(sizes=(MIB, KIB), end=False))
        assert list(test.curve) == [KIB, MIB]
        assert any("not in order" in note for note in test.notes)
        assert any("cut off" in note for note in test.notes)
        (test,) = read(printed(sizes=(MIB,)))
        assert any("one size only" in note for note in test.notes)

    def test_rows_that_do_not_agree_with_themselves(self, read):
        torn = row(64 * MIB, 400.0, factor("all_reduce", 8)).replace(" 400.00", "  40.00")
        (test,) = read(printed(sizes=(MIB, 4 * MIB, 16 * MIB), end=False) + torn)
        assert 64 * MIB not in test.curve
        assert any("not the bandwidth that is printed: 67,108,864" in note for note in test.notes)

    def test_milliseconds(self, read):
        sizes = (16 * MIB, 64 * MIB)
        lines = [
            f" {size} {size // 4} float sum -1 {us_of(size) / 1e3:.4f} {size / us_of(size) / 1e3:.2f} "
            f"{1.75 * size / us_of(size) / 1e3:.2f} 0"
            for size in sizes
        ]
        (test,) = read("\n".join(lines))
        assert test.curve[16 * MIB] == pytest.approx(us_of(16 * MIB), rel=1e-2)
        assert any("milliseconds" in note for note in test.notes)

    def test_rows_of_no_bytes(self, read):
        text = printed("all_gather", 8, sizes=(), end=False) + "0 0 float none -1 0.17 0.00 0.00 0 0.15 0.00 0.00 0\n"
        (test,) = read(text + row(MIB, 30.0, 7 / 8, redop="none"))
        assert list(test.curve) == [MIB]
        assert any("1 rows of no bytes" in note for note in test.notes)


def test_suffixes_of_sizes(read):
    text = printed(sizes=(), end=False) + row(MIB, 30.0, 1.75).replace(str(MIB), "1M", 1)
    assert list(read(text)[0].curve) == [MIB]


def test_the_sweeps_figures_take_it(read):
    frame = read(printed("sendrecv", 2))[0].frame()
    figure = latency_figure(frame, badge="RECORDED x", beside={"formula": lambda nbytes: 1.0 + nbytes / 1e5})
    assert "formula" in [trace.name for trace in figure.data]
    assert "Point-to-point latency" in figure.layout.title.text
    assert len(busbw_figure(frame, badge="RECORDED x").data) == 1
    assert {"num_ranks", "device", "launch_mode", "nccl_version"} <= set(frame)


@pytest.mark.parametrize(
    ("good", "bad", "note"), [(" 18", " 48", "since size / time is not the bandwidth"), ("   0   ", "   7   ", "WRONG")]
)
def test_many_rows_that_are_left_out_are_soon_read(read, good, bad, note):
    lines = printed(sizes=range(1 << 25, (1 << 25) + 80_000, 4)).splitlines()
    text = "\n".join(
        line.replace(good, bad, 1) if i % 3 == 0 and "float" in line else line for i, line in enumerate(lines)
    )
    begun = time.process_time()
    (test,) = read(text)
    assert time.process_time() - begun < 4  # 20 to 50 s where every row was looked for among the others
    assert 13_300 < len(test.curve) < 13_400
    assert any(note in each for each in test.notes)


def test_whether_a_switch_sums_is_asked_where_one_can(read):
    for gpu, asked in (
        ("NVIDIA H200", True),
        ("NVIDIA GB200", True),
        ("AMD Instinct MI300X", False),
        ("Tesla T4", False),
    ):
        (test,) = read(printed(gpu=gpu))
        assert any("NVLS" in note for note in test.notes) == asked


def test_json_that_is_damaged(read):
    data = json.loads(as_json())
    data["results"][0]["out_of_place"] = [3]
    data["results"][1] = None
    (test,) = read(json.dumps(data))
    assert list(test.curve) == [1 << 26]
    data["config"]["ngpus"] = -3
    with pytest.raises(ValueError, match=r"out\.txt: ngpus must be a whole number"):
        read(json.dumps(data))
