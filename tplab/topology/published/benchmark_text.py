"""Results of benchmarks in text that is no JSON file: the tables that people publish, logs with a result in them, the
CSV of genai-perf and aiperf, and CSV with the keys of the JSON form as its header, as ``vllm bench sweep`` and people
write it; each made into the keys of the JSON form.

The tables of ``vllm bench serve`` and ``sglang.bench_serving`` (sources as in ``benchmark_forms``) say the load in
lines above, in rows of their own, in the arguments that the program prints first, or nowhere, by version.
"""

import csv
import io
import re
from collections.abc import Iterator
from typing import Any

from tplab.files import parse_json
from tplab.frames import decimal_of, separator_of

MOST_TEXT = 4 << 20
"""Longest log, in characters."""
_MOST_HITS = 200_000
_MOST_BROKEN = 10_000
"""Most objects in a log that are no JSON."""

_ROWS = {
    "Successful requests": "completed",
    "Benchmark duration (s)": "duration",
    "Total input tokens": "total_input_tokens",
    "Total generated tokens": "total_output_tokens",
    "Request throughput (req/s)": "request_throughput",
    "Output token throughput (tok/s)": "output_throughput",
    "Mean E2EL (ms)": "mean_e2el_ms",
    "Mean E2E Latency (ms)": "mean_e2e_latency_ms",
    **{f"{k} {what} (ms)": f"{k}_{what}_ms".lower() for k in ("Mean", "Median") for what in ("TTFT", "TPOT", "ITL")},
    "Maximum request concurrency": "max_concurrency",
    "Max request concurrency": "max_concurrency",
    "Traffic request rate": "request_rate",
    "Request rate configured (RPS)": "request_rate",
    "Traffic ramp-up strategy": "ramp_up_strategy",
    "Burstiness factor": "burstiness",
    "Backend": "backend",
}
"""What a row of a table or a line above it is called -> the key of the JSON form."""
_COMPLETED = "Successful requests:"
"""The row that every table has."""
_NEEDED = ("completed", "total_input_tokens", "total_output_tokens")
_FIRST_TOKEN = ("mean_ttft_ms", "median_ttft_ms")
_OPTIONS = (
    *("request_rate", "max_concurrency", "ramp_up_strategy", "num_prompts", "model", "dataset_name", "burstiness"),
    *("random_range_ratio", "random_input_len", "random_output_len"),
    *("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "tp_size", "pp_size", "dp_size"),
)
"""Arguments of the programs and of the servers that say something of the load, or of how the server is split."""
_RAMP = ("ramp_up_start_rps", "ramp_up_end_rps")
_START, _END, _RISE = "= Serving Benchmark Result =", "=" * 40, "increase RPS from "
_TOKENS = {
    **{f"{label}:": key for label, key in _ROWS.items()},
    **{f"{name}=": name for name in _OPTIONS},
    **{f"--{name.replace('_', dash)}": name for name in _OPTIONS for dash in "_-"},
    **{mark: mark for mark in (_START, _END, _RISE)},
}
"""What is looked for -> what it is; a pattern of literals, which is fast on long logs."""
_TOKEN = re.compile("|".join(re.escape(token) for token in sorted(_TOKENS, key=len, reverse=True)))
_OF_ROW = re.compile(r"[ \t]*([^\s|]+)")
_OF_OPTION = re.compile(r"['\"]?([^\s,'\")$<{`]+)(?=[\s,'\")`]|$)")
_JOINED = re.compile(r"[\w.-]")
_RATES = re.compile(r"([\d.]{1,20}) to ([\d.]{1,20}) RPS")
_OF_TEXT = ("ramp_up_strategy", "model", "dataset_name")
_COUNTED = re.compile(r"[\d.]+|inf|None")
_WITH_COMMAS = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_LINE = re.compile(r"^[^\n{}]*(\{\"[^\n]*\})[ \t]*$", re.MULTILINE)
_OPENS = re.compile(r"^\{[ \t]*$", re.MULTILINE)
_COLOURS = re.compile(r"\x1b\[[\d;]*[A-Za-z]")
_IN_HEADER = re.compile(r"^[^{}:]*\b(?:(?:mean|median)_ttft_ms|tput_per_gpu)\b[^{}:]*$")
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+(?:[eE][+-]?\d+)?")
_YAML = re.compile(r"^benchmarks:[ \t]*(?:$|#)", re.MULTILINE)
_YAML_BEGINS = 1 << 20
_PER_METRIC = ("avg", "p50", "std")


def results_in(text: str, name: str) -> tuple[list[dict[str, Any]], list[str]]:
    """The results in a text, in the keys of the JSON form, and remarks on what could not be read; none where the text
    holds none. JSON inside a log comes before tables, which then show the same."""
    if _YAML.search(text, 0, _YAML_BEGINS) and _COMPLETED not in text and "mean_ttft_ms" not in text:
        raise ValueError(f"{name} is guidellm's YAML: write its JSON (guidellm benchmark --output-path FILE.json)")
    if len(text) > MOST_TEXT:
        raise ValueError(f"{name} is a log of more than {MOST_TEXT:,} characters: cut out the result")
    text = _COLOURS.sub("", text)
    header, *_ = text.lstrip().split("\n", 1)
    if _IN_HEADER.search(header):
        return _rows_of(text.lstrip(), name), []
    if text.lstrip().lower().startswith(("metric,", "metric;", "metric\t")):
        return [_perf_csv(text.lstrip(), name)], []
    if found := list(_json_in(text, name)):
        return found, []
    tables = list(_tables_in(text, name)) if _COMPLETED in text else []
    cut = [i for i, table in enumerate(tables, 1) if not _is_whole(table)]
    whole = [table for table in tables if _is_whole(table)]
    if not whole:
        return tables, []  # the reader says what is missing
    return whole, [f"table {i} of {len(tables)} in {name} is cut off and was left out" for i in cut]


def _cells_of(text: str, name: str) -> Iterator[list[str]]:
    """The rows of a CSV file, with decimal points whatever its country writes."""
    separator = separator_of(text.split("\n", 1)[:1])
    comma = separator != "," and decimal_of(name, text, separator) == ","
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    try:
        for row in lines:
            cells = map(str.strip, row)
            yield [cell.replace(",", ".") if comma and _DECIMAL_COMMA.fullmatch(cell) else cell for cell in cells]
    except csv.Error as error:  # a cell of more than 128 KiB
        raise ValueError(f"{name}: line {lines.line_num}: {error}") from None


def _rows_of(text: str, name: str) -> list[dict[str, Any]]:
    """One result per row, by the names in the header; cells left empty are left out."""
    header, *rows = _cells_of(text, name)
    return [{key: cell for key, cell in zip(header, row, strict=False) if cell} for row in rows if any(row)]


def _json_in(text: str, name: str) -> Iterator[dict[str, Any]]:
    """Objects that stand on a line, or on lines from ``{`` to ``}``, and look like a result."""
    spans = [found.span(1) for found in _LINE.finditer(text)]
    at = 0
    while opened := _OPENS.search(text, at):
        closed = text.find("\n}", opened.end())
        if closed < 0:
            break
        spans.append((opened.start(), closed + 2))
        at = closed + 2
    done = broken = 0
    for begin, end in sorted(spans):
        if begin < done or not any(mark in text[begin:end] for mark in ("ttft", "time_to_first_token")):
            continue
        try:
            data = parse_json(text[begin:end], name)
        except ValueError as error:  # a line of a log that is no JSON
            broken += 1
            if broken > _MOST_BROKEN:
                raise ValueError(f"{name} has more than {_MOST_BROKEN:,} objects that are cut off: {error}") from None
            continue
        done = end
        if isinstance(data, dict):
            yield data


def _is_whole(table: dict[str, Any]) -> bool:
    return all(key in table for key in _NEEDED) and any(key in table for key in _FIRST_TOKEN)


def _tables_in(text: str, name: str) -> Iterator[dict[str, Any]]:
    before: dict[str, Any] = {}  # what stands above the next table
    above: dict[str, Any] = {}  # what stood above this one; its own rows come before that
    table: dict[str, Any] | None = None
    for number, (key, values, of_option) in enumerate(_said_in(text)):
        if number == _MOST_HITS:
            raise ValueError(f"{name} is a log of more than {_MOST_HITS:,} lines of results: cut out the result")
        if of_option or key == _RISE:
            before |= dict(zip(_RAMP if key == _RISE else (key,), values, strict=True))
            continue
        ends = key in (_START, _END) or (table is not None and key in table)
        if ends and table is not None and "completed" in table:
            yield above | table
            table = None
        begins = key == _START or (key == "completed" and table is None)
        if begins:
            table, above = {}, dict(before)
            for said_anew in set(before) & {*_ROWS.values(), *_RAMP}:
                del before[said_anew]
        if values:
            (before if table is None else table)[key] = values[0]
    if table is not None and "completed" in table:
        yield above | table


def _said_in(text: str) -> Iterator[tuple[str, tuple[str, ...], bool]]:
    """Rows and marks of tables, and options: what each is, its values, and whether it is an option."""
    for hit in _TOKEN.finditer(text):
        token, at = hit[0], hit.end()
        is_flag, is_name = token.startswith("--"), token.endswith("=") and token not in (_START, _END)
        ahead = text[max(0, hit.start() - 5) : hit.start()]
        if token in (_START, _END):
            yield token, (), False
        elif token == _RISE:
            if rates := _RATES.match(text, at):
                yield token, (rates[1], rates[2]), False
        elif is_flag or is_name:
            whole = not _JOINED.fullmatch(ahead[-1:]) and (is_name or text[at : at + 1] in (" ", "="))
            given = _OF_OPTION.match(text, at + is_flag) if whole else None
            if given and (_TOKENS[token] in _OF_TEXT or _COUNTED.fullmatch(given[1])):
                yield _TOKENS[token], (given[1],), True
        elif ahead != "Peak " and not ahead[-1:].isalnum() and (given := _OF_ROW.match(text, at)):
            yield _TOKENS[token], (_value(given[1]),), False


def _value(text: str) -> str:
    return text.replace(",", "") if _WITH_COMMAS.fullmatch(text) else text.rstrip(".,;")


def _perf_csv(text: str, name: str) -> dict[str, Any]:
    """The two parts of the CSV: statistics by metric, then single values. The load does not stand in it."""
    data: dict[str, Any] = {}
    header: list[str] = []
    for cells in _cells_of(text, name):
        if not any(cells):
            continue
        if cells[0].lower() == "metric":
            header = [cell.lower() for cell in cells]
            continue
        label, _, unit = cells[0].partition("(")
        entry = {"unit": unit.rstrip(") ")} if unit else {}
        for column, cell in zip(header[1:], cells[1:], strict=False):
            if column in _PER_METRIC or column == "value":
                entry["avg" if column == "value" else column] = _value(cell)
        data.setdefault(label.strip().lower().replace(" ", "_"), entry)
    return data
