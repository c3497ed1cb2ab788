"""What was measured on the user's own machine, as the latency model reads it, and the JSON file it is kept in.

Only numbers and where they come from: the measuring is ``calibrate``'s. Every part is optional; what is missing is
taken from ``constants`` and the spec sheet, and the provenance of each term says so. Curves of measured points, not
fitted lines: an all-reduce changes its algorithm on the way (see ``tplab.collectives.cost``).

Times are medians over samples of the slowest rank, in microseconds; bandwidths GB/s = 1e9 bytes per second.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args, get_origin

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tplab.checks import check_count, check_one_of
from tplab.collectives.cost import fit_line
from tplab.files import parse_json, read_text, write_text
from tplab.measure import is_emulated
from tplab.shown import listed, shown

Floats = NDArray[np.float64]
FORMAT = "tplab-calibration/1"
LAUNCHES = ("eager", "graph")
_MOST_BYTES = 4 << 20
_MOST_PARTS = 5000
_LEAST, _MOST = 1e-9, 1e18
"""Range of times, rates and sizes: what lies beyond was not measured, and would overflow when multiplied."""
_MOST_RANKS = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class AllReduceTimes:
    """One sweep of all-reduces over sizes, in one group."""

    num_ranks: int
    """n, ranks of the group."""
    launch: str = "eager"
    """One of ``LAUNCHES``: called one by one, or replayed from a CUDA graph."""
    nbytes: tuple[float, ...]
    """Sizes of the full tensor in bytes, increasing."""
    p50_us: tuple[float, ...]
    """Median time of each size, in us."""
    link: str = ""
    """What joins the group, in words."""
    gpus: tuple[int, ...] = ()
    """GPUs (ranks) of the group; empty if all groups of this size are alike."""
    nodes: int = 1
    """Number of nodes that it spans."""

    def __post_init__(self) -> None:
        check_count("num_ranks of an all-reduce", self.num_ranks, least=2, most=_MOST_RANKS)
        check_count("nodes of an all-reduce", self.nodes, least=1, most=self.num_ranks)
        check_one_of("launch", self.launch, LAUNCHES)
        _curve("nbytes", self.nbytes, self.p50_us)


@dataclass(frozen=True, kw_only=True, slots=True)
class SendTimes:
    """Point-to-point messages from one GPU (rank) to another, over sizes."""

    source: int
    target: int
    nbytes: tuple[float, ...]
    """Sizes of the messages in bytes, increasing."""
    p50_us: tuple[float, ...]
    """Median time of each size, in us."""
    nodes: int = 1
    """1 inside a node, 2 over the network."""

    def __post_init__(self) -> None:
        _curve("nbytes", self.nbytes, self.p50_us)
        _in_range("nodes", (self.nodes,), least=1, most=2)


@dataclass(frozen=True, kw_only=True, slots=True)
class MatmulTimes:
    """Times of GEMMs (tokens, k) x (k, n), with cold weights, over tokens and shapes."""

    precision: str
    """Precision of the weights, a key of ``models.precision.ITEMSIZE``."""
    num_ranks: int = 1
    """Number of ranks that computed at once: on CPUs they share the memory bandwidth."""
    tokens: tuple[int, ...]
    """Tokens of each GEMM; at least two shapes for every number of tokens."""
    params: tuple[float, ...]
    """Parameters n·k of each GEMM."""
    p50_us: tuple[float, ...]
    """Median time of each GEMM, in us."""

    def __post_init__(self) -> None:
        if not len(self.tokens) == len(self.params) == len(self.p50_us) > 0:
            raise ValueError(
                f"matmul times need as many tokens, params and p50_us, at least one; got {len(self.tokens)}, "
                f"{len(self.params)} and {len(self.p50_us)}"
            )
        _in_range("num_ranks", (self.num_ranks,), least=1, most=_MOST_RANKS)
        _in_range("tokens", self.tokens, least=1)
        _in_range("params", self.params, least=1)
        _in_range("p50_us", self.p50_us)
        shapes: dict[int, set[float]] = {}
        for m, params in zip(self.tokens, self.params, strict=True):
            shapes.setdefault(m, set()).add(params)
        for m, different in shapes.items():
            if len(different) < 2:
                raise ValueError(f"matmul times need at least two shapes for {m} tokens, to tell start-up from rate")


@dataclass(frozen=True, kw_only=True, slots=True)
class MatmulCurve:
    """``fixed(m) + params·rate(m)`` for m tokens, interpolated in log m."""

    tokens: tuple[float, ...]
    fixed_us: tuple[float, ...]
    us_per_param: tuple[float, ...]

    def fixed(self, tokens: ArrayLike) -> Floats:
        """Fixed overhead of one GEMM on so many tokens, in us."""
        return np.asarray(np.interp(self._log(tokens), np.log(self.tokens), self.fixed_us), dtype=np.float64)

    def per_param(self, tokens: ArrayLike) -> Floats:
        """Microseconds per parameter. Above the last measured number of tokens it grows in proportion to them."""
        x, last = self._log(tokens), math.log(self.tokens[-1])
        inside = np.exp(np.interp(x, np.log(self.tokens), np.log(self.us_per_param)))
        return np.asarray(inside * np.exp(np.maximum(x - last, 0.0)), dtype=np.float64)

    def time_us(self, tokens: ArrayLike, params: ArrayLike, products: int = 1) -> Floats:
        """Time of ``products`` GEMMs with ``params`` parameters together, in us: no more than was measured with more
        tokens, to which they could be padded."""
        size, m = np.asarray(params, dtype=np.float64), np.asarray(tokens, dtype=np.float64)
        time = products * self.fixed(m) + size * self.per_param(m)
        for at, fixed, per_param in zip(self.tokens, self.fixed_us, self.us_per_param, strict=True):
            time = np.where(m <= at, np.minimum(time, products * fixed + size * per_param), time)
        return np.asarray(time, dtype=np.float64)

    @staticmethod
    def _log(tokens: ArrayLike) -> Floats:
        return np.asarray(np.log(np.maximum(np.asarray(tokens, dtype=np.float64), 1.0)), dtype=np.float64)


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """One machine's measurements."""

    machine: str
    """What the machine is called in tables."""
    device: str
    """Model of GPU or CPU, as the driver says."""
    backend: str
    """``nccl`` or ``gloo``."""
    num_ranks: int
    """Number of ranks that took part."""
    created: str
    """Time of the measurement, ISO 8601."""
    versions: Mapping[str, str]
    """Name -> version, of torch, NCCL, the driver, ..."""
    all_reduce: tuple[AllReduceTimes, ...] = ()
    sends: tuple[SendTimes, ...] = ()
    matmuls: tuple[MatmulTimes, ...] = ()
    copy_GBps: float | None = None
    """Bandwidth of a large copy, bytes read plus written, in GB/s."""
    kv_read_GBps: float | None = None
    """Bandwidth at which decode attention reads a long KV cache, in GB/s."""
    attention_fixed_us: float | None = None
    """Fixed cost of decode attention with an empty KV cache, in us."""
    prompt_attention_TFLOPS: float | None = None
    """Rate of causal attention over a long prompt, in TFLOP/s."""
    light_kernel_us: float | None = None
    """Time of a norm, rotation or activation of one token in a decode step, in us."""
    launch_us: float | None = None
    """Host time per kernel launched without a CUDA graph, in us."""
    block_overhead_us: float | None = None
    """A transformer block's decode step, less its matmuls and reading the cache: attention's start-up, norms, rotation,
    activation. One token on a CPU, a small batch on a GPU. Replaces ``attention_fixed_us`` and ``light_kernel_us``."""
    block_overhead_per_width_us: float | None = None
    """What each element of the hidden size adds to that, in us: on a GPU a norm of few rows takes as long as a row is
    wide."""
    step_overhead_us: float | None = None
    """Time of a decode step outside its blocks and the lm_head, in us: embedding, sampling, the loop itself."""
    handoff_us: float | None = None
    """Time of handing a micro-batch to the next stage, beyond the message's own, in us."""
    emulated_links: bool = False
    """Whether messages went over declared links instead of the backend's own; ``notes`` has their numbers."""
    notes: tuple[str, ...] = ()
    """What the reader must know, such as ranks that share cores or links that are emulated."""

    def __post_init__(self) -> None:
        _in_range("num_ranks", (self.num_ranks,), least=1, most=_MOST_RANKS)
        for key in _RATES:
            value = getattr(self, key)
            if value is not None and not _LEAST <= value <= _MOST:
                raise ValueError(f"{key} must be above 0 or None, got {value}")
        for key in _OVERHEADS:
            value = getattr(self, key)
            if value is not None and not 0 <= value <= _MOST:
                raise ValueError(f"{key} must be finite and not negative, or None, got {value}")

    @property
    def badge(self) -> str:
        """Badge that says where these numbers come from, for terms and figures."""
        return f"measured: {self.backend}, {self.num_ranks} x {self.device}, {self.created[:10]}"

    def for_engine(self, name: str) -> "Calibration":
        """What of it holds for that engine: the machine's part for a server on GPUs, all of it otherwise.

        The links, GEMMs and memory rates are the machine's. The loop, the kernels between the GEMMs and their launches
        are those of this lab, and a server brings its own: with the lab's, 70B on H200 comes out 9 (TP 1) to
        40 % (TP 4) too slow beside published TensorRT-LLM runs, without them 2 to 4 %.
        """
        if name == "lab" or self.backend != "nccl":
            return self
        not_measured: dict[str, Any] = dict.fromkeys(_OVERHEADS)
        return replace(self, **not_measured)

    def measured(self) -> dict[str, float]:
        """Fields that are a single time or rate and were measured, by name: what goes before a spec sheet's."""
        values = {key: getattr(self, key) for key in (*_RATES, *_OVERHEADS)}
        return {key: value for key, value in values.items() if value is not None}

    def spanning(self, network: bool) -> "Calibration":
        """With its sweeps and messages over the network only, or inside nodes only."""
        sweeps = tuple(each for each in self.all_reduce if (each.nodes > 1) == network)
        return replace(self, all_reduce=sweeps, sends=tuple(s for s in self.sends if (s.nodes > 1) == network))

    def all_reduce_us(self, nbytes: ArrayLike, n: int, *, graph: bool, gpus: Iterable[int] = ()) -> Floats | None:
        """Time of an all-reduce of ``n`` ranks, by the sweep of that very group, else of any group of that size.

        Replays from a graph are no slower than eager calls, which noise may say; eager calls fall back on a graph's
        sweep. None where no group of n was measured (the caller scales its formula).
        """
        if n == 1:
            return np.zeros_like(np.asarray(nbytes, dtype=np.float64))
        wanted, of_n = tuple(sorted(gpus)), [sweep for sweep in self.all_reduce if sweep.num_ranks == n]
        if not of_n:
            return None
        very = [sweep for sweep in of_n if wanted and tuple(sorted(sweep.gpus)) == wanted] or of_n
        same = [sweep for sweep in very if graph or sweep.launch == "eager"] or very
        first = {sweep.launch: sweep for sweep in reversed(same)}.values()
        return np.asarray(np.min([interpolate(nbytes, one.nbytes, one.p50_us) for one in first], axis=0))

    def send_us(self, nbytes: ArrayLike, pairs: Iterable[tuple[int, int]] = ()) -> Floats | None:
        """Time of a message over the slowest of ``pairs``, in either direction; of all pairs where none of those was
        measured."""
        wanted = {frozenset(pair) for pair in pairs}
        measured = [s for s in self.sends if frozenset((s.source, s.target)) in wanted] or list(self.sends)
        if not measured:
            return None
        return np.asarray(np.max([interpolate(nbytes, s.nbytes, s.p50_us) for s in measured], axis=0), dtype=np.float64)

    def matmul_curve(self, precision: str, num_ranks: int = 1) -> MatmulCurve | None:
        """Curve of GEMMs with weights in ``precision`` and ``num_ranks`` computing at once (else the nearest number
        measured); bf16 stands for fp16, and the other way round. None: not measured.

        For every number of tokens, ``fixed + params·rate`` with the smallest relative squares.
        """
        fitting = [m for m in self.matmuls if m.precision == precision]
        if not fitting and precision in _SIXTEEN_BITS:  # the same units of a GPU, at the same rate
            fitting = [m for m in self.matmuls if m.precision in _SIXTEEN_BITS]
        if not fitting:
            return None
        times = min(fitting, key=lambda m: abs(math.log(m.num_ranks / num_ranks)))
        tokens = sorted(set(times.tokens))
        lines = []
        for m in tokens:
            points = [(p, us) for t, p, us in zip(times.tokens, times.params, times.p50_us, strict=True) if t == m]
            lines.append(fit_line([p for p, _ in points], [us for _, us in points]))
        return MatmulCurve(
            tokens=tuple(float(m) for m in tokens),
            fixed_us=tuple(line.alpha_us for line in lines),
            us_per_param=tuple(max(line.transfer_us(1.0), 1e-12) for line in lines),
        )

    def to_json(self) -> str:
        """The file's text."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Calibration":
        """The other way. Raises ``ValueError`` for text that is no calibration (which key)."""
        data = parse_json(text, "a calibration")
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            found = data.get("format") if isinstance(data, dict) else type(data).__name__
            raise ValueError(f"a calibration has format {FORMAT!r}, got {shown(found)}: run calibrate again")
        data = {key: value for key, value in data.items() if key != "format"}
        if "emulated_links" not in data and isinstance(notes := data.get("notes"), list):  # of an earlier version
            data["emulated_links"] = any(isinstance(note, str) and is_emulated(note) for note in notes)
        for key, kind in _PARTS.items():
            parts = data.get(key, [])
            if not isinstance(parts, list):
                raise ValueError(f"calibration: {key} must be a list, each an object, got {_said(parts)}")
            if len(parts) > _MOST_PARTS:
                raise ValueError(f"calibration: {key} must hold at most {_MOST_PARTS:,} objects, got {len(parts):,}")
            data[key] = tuple(_read(kind, part, f"{key}[{i}]") for i, part in enumerate(parts))
        made = _read(cls, data, "calibration")
        assert isinstance(made, cls), "_read makes one of the kind it is given"
        return made

    def save(self, path: "str | os.PathLike[str]") -> Path:
        """Writes the file, whole or not at all, and gives its path. Raises ``OSError`` like ``files.replacing``."""
        write_text(path, self.to_json())
        return Path(path)

    @classmethod
    def load(cls, path: "str | os.PathLike[str]") -> "Calibration":
        """Reads it. Raises ``ValueError`` with the path for a file that is no calibration."""
        try:
            return cls.from_json(read_text(path, limit=_MOST_BYTES))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


_PARTS: Mapping[str, Any] = {"all_reduce": AllReduceTimes, "sends": SendTimes, "matmuls": MatmulTimes}
_SIXTEEN_BITS = ("bf16", "fp16")
_RATES = ("copy_GBps", "kv_read_GBps", "prompt_attention_TFLOPS")
_OVERHEADS = (
    *("attention_fixed_us", "light_kernel_us", "launch_us", "block_overhead_us", "block_overhead_per_width_us"),
    *("step_overhead_us", "handoff_us"),
)


def interpolate(nbytes: ArrayLike, sizes: Iterable[float], times_us: Iterable[float]) -> Floats:
    """Straight lines in log size and log time; constant below the first size, constant bandwidth above the last. No
    size takes longer than a larger one did, to which it could be padded: measured times waver."""
    x, y = np.log(np.asarray(list(sizes))), np.log(np.asarray(list(times_us)))
    y = np.minimum.accumulate(y[::-1])[::-1]
    at = np.log(np.maximum(np.asarray(nbytes, dtype=np.float64), 1.0))
    return np.asarray(np.exp(np.interp(at, x, y) + np.maximum(at - x[-1], 0.0)), dtype=np.float64)


def _read(kind: Any, data: Any, where: str) -> Any:
    known = {f.name: f for f in fields(kind)}
    if not isinstance(data, dict):
        raise ValueError(f"{where} must be an object, got {_said(data)}")
    if unknown := sorted(set(data) - set(known)):
        raise ValueError(f"{where} has unknown keys {listed(unknown)}: known are {', '.join(sorted(known))}")
    needed = [name for name, f in known.items() if f.default is MISSING and f.default_factory is MISSING]
    if lacking := [name for name in needed if name not in data]:
        raise ValueError(f"{where} lacks {', '.join(lacking)}")
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
    for key, value in values.items():
        if not _is(value, known[key].type):
            raise ValueError(f"{where}: {key} must be {_words(known[key].type)}, got {_said(data[key])}")
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


_NAMES: Any = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}


def _is(value: Any, kind: Any) -> bool:
    """Whether what JSON gave (lists as tuples) is of a field's type: JSON has one kind of number, and no tuples."""
    args = get_args(kind)
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_is(each, args[0]) for each in value)
    if get_origin(kind) is Mapping:
        return isinstance(value, dict) and all(_is(each, args[1]) for each in value.values())
    if args:  # one of several
        return any(_is(value, each) for each in args)
    if kind in (int, float):
        return isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
    return isinstance(value, kind)


def _words(kind: Any) -> str:
    """A field's type, for people who look at the file."""
    args = get_args(kind)
    if get_origin(kind) is tuple:
        return f"a list, each {_words(args[0])}"
    if get_origin(kind) is Mapping:
        return f"an object, each value {_words(args[1])}"
    return " or ".join(map(_words, args)) if args else _NAMES.get(kind, "an object")


def _said(value: Any) -> str:
    """A value as the file has it, cut short."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _curve(name: str, x: tuple[float, ...], us: tuple[float, ...]) -> None:
    if len(x) != len(us) or not x:
        raise ValueError(f"{name} and p50_us must be as long as each other and not empty, got {len(x)} and {len(us)}")
    if not all(a < b for a, b in pairwise((0, *x))) or x[-1] > _MOST:
        raise ValueError(f"{name} must be above 0 and increase, got {shown(list(x))}")
    if not all(_LEAST <= t <= _MOST for t in us):
        raise ValueError(f"p50_us must be finite and above 0, got {shown(list(us))}")


def _in_range(name: str, values: Iterable[float], *, least: float = _LEAST, most: float = _MOST) -> None:
    wrong = [value for value in values if not least <= value <= most]
    if wrong:
        raise ValueError(f"{name} must lie between {least:g} and {most:g}, got {shown(wrong[0])}")
