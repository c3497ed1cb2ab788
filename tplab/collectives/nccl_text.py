"""What nccl-tests and rccl-tests print, and their JSON, taken apart: who took part, and the rows. Judged elsewhere.

The text is looked for inside whatever stands around it: ``mpirun --tag-output``, ``srun -l``, logs of containers,
NCCL's own messages, a report's quotation. The forms differ by version (nccl-tests, src/common.cu and src/util.cu:
``res`` or ``error`` in old ones, ``#wrong`` since 2.12; no ``root`` or ``redop`` where a test has none; ``cputime``
with -C 1; four more columns a side with per-iteration timing; rccl-tests has the same); the JSON is that of -J (util.cu
at 0fdb00a, JSON_FILE_VERSION 2).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tplab.checks import ArgumentError
from tplab.files import parse_json
from tplab.shown import shown

MOST_ROWS = 20_000
MOST_RANKS = 1 << 16
_LONGEST_LINE = 2000
_FEWEST_CELLS = 7
TYPES = (
    *("int8", "uint8", "char", "int32", "int", "uint32", "int64", "uint64", "half", "float", "double", "bfloat16"),
    *("float8", "fp8_e4m3", "fp8_e5m2", "f8e4m3", "f8e5m2", "f8e4m3fn", "float8_e4m3", "float8_e5m2"),
)
"""Names of dtypes in the column ``type``."""
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_NAME = re.compile(
    r"\b(all_?reduce|all_?gather|reduce_?scatter|broadcast|reduce|all_?to_?allv?|sendrecv|gather|scatter|hypercube)"
    r"_(?:perf|bench)(?:_mpi)?\b"
)
_HEADER = re.compile(r"nThread (\d{1,6}) nGpus (\d{1,6}) ")
_COUNT = re.compile(r"(agg iters|warmup iters|iters|graph): (\d{1,9})")
_RANK = re.compile(
    r"\bRank +(\d{1,6}) +(?:Group +(\d{1,6}) +)?(?:Pid +(\d{1,12}) +)?on +(\S{1,255}) +device +(\d{1,6}) +"
    r"\[[^\]\n]{0,40}\] *(.{0,120})"
)
_TABLE = re.compile(r"\b(?:size|bytes)\s+(?:count|N)\s+type\b(.*)\b(?:algbw)\b")
_ROW = re.compile(
    r"(?<![\w.])(\d{1,15}(?:\.\d{1,6})?[KMGT]?i?B?)\s+(\d{1,15})\s+("
    + "|".join(sorted(TYPES, key=len, reverse=True))
    + r")\s+(?=\S)(.*)"
)
_TYPED = re.compile(r"\d\s+(?:" + "|".join(TYPES) + r")\b")
_OF_INTEREST = re.compile(
    r"_perf|_bench|nThread|Rank|NCCL_|algbw|ersion|nccl-library|n[rR]anks|NVLS|Blocking|Out of bounds|Avg bus|ailure"
    r"|rror|memory|Invalid"
)
"""What a line must have for any of the patterns below: logs are long."""
_LIKE_ROW = re.compile(r"(?<![\w.])\d{1,15}\s+\d{1,15}\s+(?:" + "|".join(TYPES) + r")\b")
_NUMBER = re.compile(r"[+-]?(?:\d{1,20}(?:\.\d{0,20})?(?:[eE][+-]?\d{1,3})?|inf|nan)|N/A", re.IGNORECASE)
_VERSIONS = re.compile(r"\b(nccl-tests|rccl-tests):? [Vv]ersion:? *(\S{1,40})")
_LIBRARY = re.compile(r"\b(?:NCCL version|RCCL version *:|nccl-library=)\s*(\d[\w.+-]{0,40})")
_NRANKS = re.compile(r"\bnranks (\d{1,6})\b", re.IGNORECASE)
_FAILURE = re.compile(
    r"Test (?:NCCL|CUDA) failure|NCCL failure|Invalid number of GPUs|unhandled \w+ error|out of memory"
)
_VARIABLE = re.compile(r"\b(NCCL_(?:NVLS_ENABLE|ALGO|PROTO|P2P_DISABLE|P2P_LEVEL|SHM_DISABLE|IB_DISABLE))=(\S{1,60})")
_OTHERS = {
    "nccom-test of AWS Neuron": r"nccom-test|count\(elems\)",
    "Ascend's hccl_test": r"alg_bandwidth\(GB/s\)|hccl_test",
    "OSU's micro-benchmarks": r"# OSU [\w-]+ ",
    "perftest (ib_write_bw, ...)": r"#bytes +#iterations",
    "nvbandwidth": r"nvbandwidth Version|memcpy [CS][EM] [CG]PU",
    "p2pBandwidthLatencyTest": r"P2P=\w+ (?:Bandwidth|Latency) Matrix",
    "oneCCL's benchmark": r"#bytes +#repetitions",
}
"""Programs whose tables are taken for those of nccl-tests, and how one knows them."""
_SUFFIXES = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """One rank, as its line says."""

    rank: int
    group: int
    pid: str
    host: str
    name: str
    """The GPU, as the driver calls it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Half:
    """One side of a row: out of place, or in place."""

    time: float
    """Mean time in the table's unit, us unless it was another."""
    algbw: float
    busbw: float
    wrong: float | None
    """Values that were wrong, or in old versions the largest deviation; None where it was not checked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One size."""

    nbytes: int
    dtype: str
    """Name of the dtype as it is printed: ``float``, ``half``, ..."""
    redop: str
    root: int
    out_of_place: Half | None
    in_place: Half | None


@dataclass(kw_only=True, slots=True)
class Raw:
    """One run of one test, as far as the text has it."""

    name: str = ""
    """The program, less ``_perf``: ``all_reduce``."""
    headers: int = 0
    """Lines with nThread: one of every process that ran for itself."""
    threads: int = 0
    gpus: int = 0
    """GPUs of each thread; 0 where no line says it."""
    counts: dict[str, int] = field(default_factory=dict)
    """``iters``, ``agg iters``, ``graph``."""
    devices: list[Device] = field(default_factory=list)
    stated_ranks: int = 0
    """Ranks that something else states: NCCL's own messages, or the configuration of a JSON file."""
    counts_wrong: bool = True
    """Whether the last column counts wrong values; else it is a deviation."""
    rows: list[Row] = field(default_factory=list)
    damaged: int = 0
    """Lines that begin as rows and do not go on so."""
    out_of_bounds: int | None = None
    ended: bool = False
    """Whether the lines after the table are there."""
    versions: dict[str, str] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    """NCCL's variables of the environment that change what is measured."""
    nvls: bool | None = None
    """Whether NCCL said that it sums in the switch; None where it said nothing."""
    started: str = ""
    cpu_time: bool = False
    """Whether times are of the host's work (-C 1)."""
    blocking: bool = False
    """Whether the host waits for each call (-z)."""
    other: str = ""
    """Another program whose output it is."""
    failure: str = ""
    """The first line about a failure."""


def read_raw(text: str, name: str) -> list[Raw]:
    """The tests in ``text``, in order; one without rows stays for what it says. ``name`` is the file's, for errors.

    Raises:
        ValueError: JSON that is not nccl-tests', or more than ``MOST_ROWS`` rows.
    """
    if text.lstrip()[:1] == "{":
        return [_from_json(parse_json(text, name), name)]
    found = _from_text(text)
    if not any(raw.rows for raw in found):
        found[0].other = next((tool for tool, how in _OTHERS.items() if re.search(how, text[:100_000])), "")
    return found


def _from_text(text: str) -> list[Raw]:
    found = [Raw()]
    common: dict[str, str] = {}
    columns, num_rows = "", 0
    for line in text.split("\n"):
        line = _ANSI.sub("", line[:_LONGEST_LINE]).replace("\r", "").replace("\t", " ")
        for separator in ",;|":  # of a CSV file, or a table in Markdown
            if line.count(separator) >= _FEWEST_CELLS:
                line = line.replace(separator, " ")
        raw = found[-1]
        if _TYPED.search(line):
            row = _ROW.search(line)
            made = _row(row, columns) if row else None
            if made is not None:
                raw.rows.append(made)
                num_rows += 1
                if num_rows > MOST_ROWS:
                    raise ArgumentError("rows", num_rows, f"must be at most {MOST_ROWS:,} in one file of nccl-tests")
                continue
            if row or _LIKE_ROW.search(line):
                raw.damaged += 1
                continue
        if not _OF_INTEREST.search(line):
            continue
        named, header = _NAME.search(line), _HEADER.search(line)
        rank = _RANK.search(line) if "Rank" in line else None
        concluded = "concluded" in line
        if raw.rows and not concluded and (named or header or (rank and rank[1] == "0")):
            kept = raw.name if not named else ""  # a loop over one program need not say it again
            raw = Raw(name=kept)
            found.append(raw)
        if named and not concluded:
            raw.name = named[1]
        for key, value in _VARIABLE.findall(line):
            raw.variables[key] = value.strip("\"',;")
        if header:
            raw.headers += 1
            raw.threads, raw.gpus = int(header[1]), int(header[2])
            raw.counts = {key: int(value) for key, value in _COUNT.findall(line)}
        elif rank:
            if len(raw.devices) < MOST_RANKS:
                raw.devices.append(
                    Device(
                        rank=int(rank[1]),
                        group=int(rank[2] or 0),
                        pid=rank[3] or "",
                        host=rank[4],
                        name=rank[6].strip().split("  ")[0],
                    )
                )
        elif table := _TABLE.search(line):
            columns = table[1]
            raw.cpu_time = "cputime" in columns
            raw.counts_wrong = "error" not in line and not re.search(r"\bres\b", line)
        else:
            _about(raw, line, common)
    for raw in found:
        raw.versions = common | raw.versions
    return [raw for raw in found if raw.rows or raw.devices or raw.headers or raw.damaged or raw.failure] or found[:1]


def _about(raw: Raw, line: str, common: dict[str, str]) -> None:
    """What other lines say."""
    if version := _VERSIONS.search(line):
        common[version[1]] = version[2]
    if library := _LIBRARY.search(line):
        common["nccl"] = library[1]
    if stated := _NRANKS.search(line):
        raw.stated_ranks = max(raw.stated_ranks, int(stated[1]))
    if "NVLS" in line and "NCCL INFO" in line:
        raw.nvls = not re.search(r"not (available|supported)|disabled", line)
    if bounds := re.search(r"Out of bounds values *: *(\d{1,12})", line):
        raw.out_of_bounds, raw.ended = int(bounds[1]), True
    raw.blocking |= "Blocking Enabled" in line
    if "Avg bus bandwidth" in line:
        raw.ended = True
    if not raw.failure and _FAILURE.search(line):
        raw.failure = line.strip()[-160:]


def _row(found: "re.Match[str]", columns: str) -> Row | None:
    """None for a line that does not go on as a row."""
    words = found[4].split()
    redop = words.pop(0) if words and re.fullmatch(r"[a-z_]{2,12}", words[0]) else ""
    halves: list[str] = []
    for word in words:
        if not _NUMBER.fullmatch(word):
            break  # a time of day, or what another process wrote into the line
        halves.append(word)
    root = -1
    if "root" in columns or (not columns and len(halves) % 4 == 1):
        if not halves or not re.fullmatch(r"-?\d{1,6}", halves[0]):
            return None
        root = int(halves.pop(0))
    width = 8 if len(halves) >= 16 or (len(halves) == 8 and "i_min" in columns) else 4
    if len(halves) < width or (len(halves) > width and len(halves) < 2 * width):
        return None
    both = [_half(halves[i * width : i * width + 4]) for i in range(min(2, len(halves) // width))]
    size = re.fullmatch(r"([\d.]+)([KMGT]?)i?B?", found[1])
    if size is None or both[0] is None or size[1].count(".") > 1:
        return None
    return Row(
        nbytes=int(float(size[1]) * (1 << _SUFFIXES[size[2]])),
        dtype=found[3],
        redop=redop,
        root=root,
        out_of_place=both[0],
        in_place=both[1] if len(both) > 1 else None,
    )


def _half(words: list[str]) -> Half | None:
    time, algbw, busbw, wrong = (None if word.upper() == "N/A" else float(word) for word in words)
    if time is None or algbw is None or busbw is None:
        return None
    return Half(time=time, algbw=algbw, busbw=busbw, wrong=wrong)


def _from_json(data: Any, name: str) -> Raw:
    results = data.get("results") if isinstance(data, Mapping) else None
    if not isinstance(results, list) or not isinstance(data.get("config"), Mapping):
        raise ValueError(f"{name} is JSON, but not of nccl-tests (-J): it has no config and results")
    if len(results) > MOST_ROWS:
        raise ArgumentError("results", len(results), f"must be at most {MOST_ROWS:,}")
    config, raw = data["config"], Raw(ended="out_of_bounds" in data or "end_time" in data)
    arguments = [each for each in _list(data.get("args")) if isinstance(each, str)]
    named = _NAME.search(" ".join(arguments)[:_LONGEST_LINE])
    raw.name = named[1] if named else ""

    def count(of: Mapping[Any, Any], key: str, otherwise: int) -> int:
        return _whole(f"{name}: {key}", of.get(key), otherwise)

    raw.threads, raw.gpus = count(config, "nthreads", 1), count(config, "ngpus", 1)
    keys = {"iters": "iterations", "agg iters": "aggregated_iterations", "graph": "graph"}
    raw.counts = {key: count(config, theirs, 0) for key, theirs in keys.items()}
    for each in _list(config.get("devices"))[:MOST_RANKS]:
        if isinstance(each, Mapping):
            texts = {key: str(each.get(key, ""))[:255] for key in ("pid", "hostname", "device_info")}
            rank, group = count(each, "rank", 0), count(each, "group", 0)
            raw.devices.append(
                Device(rank=rank, group=group, pid=texts["pid"], host=texts["hostname"], name=texts["device_info"])
            )
    # Of every process only the first GPU is listed (parseRankInfo reads one line).
    raw.stated_ranks = min(max(1, len(raw.devices)) * raw.threads * raw.gpus, MOST_RANKS)
    for each in _list(data.get("env")):
        if isinstance(each, str) and (found := _VARIABLE.fullmatch(each[:200])):
            raw.variables[found[1]] = found[2]
    if isinstance(data.get("nccl_version"), int):
        raw.versions["nccl"] = _dotted(data["nccl_version"])
    raw.blocking = config.get("blocking_collectives") in (True, "true")
    raw.cpu_time = any(
        isinstance(each, Mapping) and "cpu_time" in str(each.get("out_of_place")) for each in results[:1]
    )
    raw.started = str(data.get("start_time", ""))[:19]
    bounds = data.get("out_of_bounds")
    raw.out_of_bounds = count(bounds, "count", 0) if isinstance(bounds, Mapping) else None
    for each in results:
        made = _json_row(each)
        if made is None:
            raw.damaged += 1
        else:
            raw.rows.append(made)
    return raw


def _json_row(data: Any) -> Row | None:
    if not isinstance(data, Mapping) or not isinstance(data.get("size"), int) or isinstance(data["size"], bool):
        return None
    halves = {}
    for key in ("out_of_place", "in_place"):
        half = data.get(key)
        if not isinstance(half, Mapping | None):
            return None
        numbers = [half.get("time", half.get("cpu_time")), half.get("alg_bw"), half.get("bus_bw")] if half else []
        if not all(_is_number(each) for each in numbers):
            return None
        wrong = half.get("nwrong") if half else None
        halves[key] = (
            Half(
                time=float(numbers[0]),
                algbw=float(numbers[1]),
                busbw=float(numbers[2]),
                wrong=float(wrong) if wrong is not None and _is_number(wrong) else None,
            )
            if half
            else None
        )
    root = str(data.get("root", "-1")).strip()
    return Row(
        nbytes=data["size"],
        dtype=str(data.get("type", ""))[:20],
        redop=str(data.get("redop", ""))[:20],
        root=int(root) if re.fullmatch(r"-?\d{1,6}", root) else -1,
        out_of_place=halves["out_of_place"],
        in_place=halves["in_place"],
    )


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _whole(where: str, value: Any, otherwise: int) -> int:
    """A count in JSON. Raises ``ValueError`` for one that nothing can have; ``where`` names its file and key."""
    if value is None:
        return otherwise
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 1 << 30:
        raise ValueError(f"{where} must be a whole number from 0 to {1 << 30:,}, got {shown(value)}")
    return value


def _dotted(code: int) -> str:
    """22902 -> 2.29.2, 2708 -> 2.7.8 (nccl.h: NCCL_VERSION)."""
    if code < 10_000:
        return f"{code // 1000}.{code // 100 % 10}.{code % 100}"
    return f"{code // 10_000}.{code // 100 % 100}.{code % 100}"
