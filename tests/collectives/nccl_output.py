"""What nccl-tests prints, made of given times: inputs for the tests of its readers."""

import json

HEAD = (
    "# nThread {t} nGpus {g} minBytes 8 maxBytes 1 step: 2(factor) warmup iters: 5 iters: {iters} {agg}validation: 1 "
    "{graph}"
)
HALF = "     time   algbw   busbw #wrong"
COLUMNS = f"#       size         count      type   redop    root{HALF}{HALF}"
ITEM = {"float": 4, "half": 2, "bfloat16": 2, "double": 8}


def factor(name, n):
    return {"all_reduce": 2 * (n - 1) / n, "sendrecv": 1.0, "broadcast": 1.0}.get(name, (n - 1) / n)


def us_of(nbytes, alpha=20.0, GBps=200.0):
    return alpha + nbytes / GBps / 1e3


def row(nbytes, us, f, *, dtype="float", redop="sum", root="-1", wrong="0", in_place="0"):
    def half(time, said):
        shown = f"{time:.2f}" if time < 1e4 else f"{time:.0f}"
        return f"{shown:>8} {nbytes / time / 1e3:7.2f} {f * nbytes / time / 1e3:7.2f} {said:>6}"

    lead = f"{nbytes:12d}  {nbytes // ITEM[dtype]:12d}  {dtype:>8}  {redop:>6}  {root:>6}"
    return f"{lead} {half(us, wrong)} {half(us * 0.98, in_place)}"


def rank_line(rank, host="node-0", gpu="NVIDIA H100 80GB HBM3", bus="0x19", group=0):
    return f"#  Rank {rank:2d} Group {group:2d} Pid {1000 + rank:6d} on {host:>10} device {rank % 8:2d} [{bus}] {gpu}"


def printed(
    name="all_reduce", n=8, sizes=tuple(1 << p for p in range(3, 29)), *, us=us_of, hosts=1,
    gpu="NVIDIA H100 80GB HBM3", starting=True, ranks=True, graph=0, iters=20, end=True, **columns
):  # fmt: skip
    """The whole output of one program; ``us`` gives the time of a size, ``columns`` go to every row."""
    per_host, lines = n // hosts, []
    if starting:
        lines.append(f"# Collective test starting: {name}_perf")
    head = HEAD.format(t=1, g=per_host if hosts == 1 else 1, iters=iters, agg="agg iters: 1 ", graph=f"graph: {graph}")
    lines += [head, "#", "# Using devices"]
    if ranks:
        lines += [rank_line(r, f"node-{r // per_host}", gpu) for r in range(n)]
    lines += ["#", "#           out-of-place                       in-place          ", COLUMNS]
    lines.append(
        "#        (B)    (elements)                               (us)  (GB/s)  (GB/s)            (us)  (GB/s)  (GB/s)"
    )
    unchecked = {"in_place": "N/A"} if name in ("sendrecv", "alltoall") else {}
    reduces = {} if name in ("all_reduce", "sendrecv", "reduce_scatter") else {"redop": "none"}
    root = {"root": "0"} if name == "broadcast" else {}
    lines += [row(size, us(size), factor(name, n), **reduces | root | unchecked | columns) for size in sizes]
    if end:
        lines += ["# Out of bounds values : 0 OK", "# Avg bus bandwidth    : 70.742 ", "#"]
    return "\n".join(lines) + "\n"


def as_json(name="all_reduce", n=4, sizes=(1 << 10, 1 << 20, 1 << 26), us=us_of, **config):
    """What -J writes (nccl-tests, src/util.cu)."""

    def half(size, checked):
        time = us(size)
        bw = size / time / 1e3
        return {"time": time, "alg_bw": bw, "bus_bw": bw * factor(name, n), "nwrong": 0.0 if checked else None}

    data = {
        "version": 2, "start_time": "2026-11-01 10:00:00", "args": [f"./build/{name}_perf", "-g", str(n)],
        "env": ["HOME=/root", "NCCL_NVLS_ENABLE=0"], "nccl_version": 22803,
        "config": {
            "nthreads": 1, "ngpus": n, "minimum_bytes": 8, "maximum_bytes": 1, "step_factor": 2, "warmup_iters": 5,
            "iterations": 20, "aggregated_iterations": 1, "validation": 1, "graph": 0,
            "devices": [{"rank": 0, "group": 0, "pid": 7, "hostname": "a", "device": 0, "device_hex": "0000:1b:00",
                         "device_info": "NVIDIA H200"}],
        } | config,
        "results": [
            {"size": size, "count": size // 4, "type": "float", "redop": "sum", "root": "    -1",
             "out_of_place": half(size, True), "in_place": half(size, name == "all_reduce"),
             "actual_iterations": 20, "experiment_name": "x"}
            for size in sizes
        ],
        "out_of_bounds": {"count": 0, "okay": "true"},
        "average_bus_bandwidth": {"bandwidth": 1.0, "okay": "unchecked"},
        "errors": [], "end_time": "2026-11-01 10:01:00",
    }  # fmt: skip
    return json.dumps(data)
