"""A repository on Hugging Face: its configuration and the headers of its weights, from the local cache or the network.

Of weights nothing but the beginnings of files is asked for (HTTP ``Range``); a server that sends more is not listened
to. The settings are those of ``huggingface_hub`` (huggingface.co/docs/huggingface_hub, "Environment variables"):
``HF_ENDPOINT``, ``HF_TOKEN``, ``HF_HUB_OFFLINE``, ``HF_HOME``, ``HF_HUB_CACHE``. The token goes to the endpoint alone,
not to where it redirects. A cached snapshot is taken before the network is asked.
"""

import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from tplab.files import parse_json, read_text, text_of
from tplab.models.found.folder import INDEX, MOST_INDEX_BYTES, files_in_index, weights_in
from tplab.models.found.headers import FIRST_BYTES, StoredWeights, header_length, stored, tensors_in
from tplab.models.keys import MOST_BYTES
from tplab.shown import shown

if TYPE_CHECKING:
    from http.client import HTTPMessage
    from urllib.request import Request

TIMEOUT_S = 5.0
"""Longest wait for a connection, or for the next bytes."""
DEADLINE_S = 20.0
"""Longest time for all that is asked about one model."""
_FIRST_PART = 100_000
"""Bytes that are asked for first: eight and most headers."""
_AT_ONCE = 8
_MOST_TOKEN_BYTES = 4096
_READ_SIZE = 1 << 16
ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
"""An owner and a name: what a repository of the hub is called."""


class NotReached(ValueError):
    """The network cannot be asked: switched off, no route, too slow."""


class NotThere(ValueError):
    """The hub has no such repository or file, or does not show it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OnHub:
    """What was read of a repository."""

    config: Mapping[str, Any] | None
    """Contents of its ``config.json``; None if it has none."""
    weights: StoredWeights | None
    """None where it has no safetensors files, or where their headers could not be read."""
    source: str
    """Where that was: a folder of the cache, or an address."""
    notes: tuple[str, ...] = ()


def endpoint() -> str:
    """Address of the hub, without a slash at its end. Raises ``ValueError`` for a setting that is none."""
    found = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").strip().rstrip("/")
    if urlsplit(found).scheme not in ("http", "https") or not urlsplit(found).hostname:
        raise ValueError(f"HF_ENDPOINT must be an address such as https://huggingface.co; got {shown(found)}")
    return found


def repo_in(address: str) -> str | None:
    """``owner/name`` of a page of the hub, as a browser shows its address; None for any other text."""
    parts = urlsplit(address.strip())
    hosts = ("huggingface.co", "hf.co", urlsplit(endpoint()).hostname)
    found = ID.match(parts.path.lstrip("/"))
    return found[0] if found and parts.scheme in ("http", "https") and parts.hostname in hosts else None


def offline() -> bool:
    """Whether the settings forbid the network."""
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return any(os.environ.get(name, "").strip().upper() in ("1", "ON", "YES", "TRUE") for name in names)


def snapshot(repo: str) -> Path | None:
    """The folder of the cache with the ``config.json`` of a repository; None if there is none."""
    home = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    cache = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or os.path.join(home, "hub")
    of_it = Path(cache).expanduser() / f"models--{repo.replace('/', '--')}"
    with suppress(OSError, ValueError):
        named = of_it / "snapshots" / read_text(of_it / "refs" / "main", limit=200).strip()
        if (named / "config.json").is_file():
            return named
    with suppress(OSError):
        every = [path for path in (of_it / "snapshots").iterdir() if (path / "config.json").is_file()]
        return max(every, key=lambda path: path.stat().st_mtime, default=None)
    return None


def read_cached(repo: str) -> OnHub | None:
    """What the local cache has of a repository; None if that is nothing. Weights count if all of them are there."""
    folder = snapshot(repo)
    if folder is None:
        return None
    config = parse_json(read_text(folder / "config.json", limit=MOST_BYTES), str(folder / "config.json"))
    weights = None
    with suppress(ValueError, OSError):  # config.json alone, or a download under way
        weights = weights_in(folder)
    return OnHub(config=_object(config, str(folder)), weights=weights, source=str(folder))


def read_hub(repo: str) -> OnHub:
    """What the network says of a repository.

    Raises:
        NotReached: no network, or not in time.
        NotThere: no such repository, or it is gated: with what to do.
        ValueError: an answer that cannot be read.
    """
    if offline():
        raise NotReached("HF_HUB_OFFLINE is set, and the local cache does not have it")
    asked = _Asked(repo, time.monotonic() + DEADLINE_S)
    config, notes = asked.json("config.json", MOST_BYTES), []
    weights = None
    try:
        weights = _weights(asked)
    except (NotReached, ValueError) as error:
        if config is None:
            raise
        notes.append(f"the headers of its weights could not be read ({error}): they are counted by the configuration")
    if config is not None and not any(config.get(key) for key in ("quantization_config", "compression_config")):
        beside = None
        if weights is not None and weights.precision not in ("fp32", "bf16", "fp16"):
            beside = asked.json("hf_quant_config.json", MOST_BYTES)
        config = {**config, "quantization_config": beside} if beside else config
    if config is None and weights is None:
        raise NotThere(
            f"{repo} has neither a config.json nor safetensors files on {asked.host}: a repository of GGUF files, or "
            f"of an adapter, names its original model on its page: give that one"
        )
    return OnHub(config=config, weights=weights, source=f"{asked.base}/{repo}", notes=tuple(notes))


def _weights(asked: "_Asked") -> StoredWeights | None:
    index = asked.json(INDEX, MOST_INDEX_BYTES)
    if index is None:
        alone = asked.tensors("model.safetensors")
        return None if alone is None else stored([alone])
    from concurrent.futures import ThreadPoolExecutor

    names = files_in_index(index, f"{INDEX} of {asked.repo}")
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        files = list(pool.map(asked.tensors, names))
    if missing := [name for name, found in zip(names, files, strict=True) if found is None]:
        raise ValueError(f"{missing[0]}, which {INDEX} names, is not there")
    return stored(found for found in files if found is not None)


class _Asked:
    """Files of one repository, asked for within one deadline."""

    def __init__(self, repo: str, until: float) -> None:
        import urllib.request  # some 40 ms, for who asks the network

        self.repo, self.base, self._until = repo, endpoint(), until
        self.host = str(urlsplit(self.base).netloc).rpartition("@")[2]
        self._token = _token()
        origin = _origin(self.base)

        class Redirects(urllib.request.HTTPRedirectHandler):
            """Follows to other hosts without the token."""

            def redirect_request(
                self, req: "Request", fp: IO[bytes], code: int, msg: str, headers: "HTTPMessage", newurl: str
            ) -> "Request | None":
                if urlsplit(newurl).scheme not in ("http", "https"):
                    raise ValueError(f"it redirects to {shown(newurl)}, which is no address of the web")
                made = super().redirect_request(req, fp, code, msg, headers, newurl)
                if made is not None and _origin(newurl) != origin:
                    made.remove_header("Authorization")
                return made

        self._open = urllib.request.build_opener(Redirects).open
        self._request = urllib.request.Request

    def json(self, file: str, limit: int) -> dict[str, Any] | None:
        """The object in a JSON file; None if there is no such file."""
        data = self._read(file, limit)
        if data is None:
            return None
        name = f"{file} of {self.repo}"
        return _object(parse_json(text_of(data, name), name), name)

    def tensors(self, file: str) -> list[tuple[str, str, int]] | None:
        """The tensors that the header of a file names; None if there is no such file."""
        name = f"{file} of {self.repo}"
        data = self._read(file, _FIRST_PART, part=True)
        if data is None:
            return None
        length = FIRST_BYTES + header_length(data, name)
        if length > len(data):
            data = self._read(file, length, part=True)
            if data is None or len(data) < length:
                raise ValueError(f"{name} ends inside its header")
        return tensors_in(data[FIRST_BYTES:length], name)

    def _read(self, file: str, limit: int, *, part: bool = False) -> bytes | None:
        """The first ``limit`` bytes of a file, or all of one that must not be longer; None if there is no such file."""
        from http.client import HTTPException
        from urllib.error import HTTPError, URLError

        headers = {"User-Agent": "tplab", "Accept-Encoding": "identity"}
        if part:
            headers["Range"] = f"bytes=0-{limit - 1}"
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        address = f"{self.base}/{self.repo}/resolve/main/{quote(file)}"
        try:
            data = self._in_time(lambda: self._fetch(self._request(address, headers=headers), limit))
        except HTTPError as error:
            error.close()
            self._check_status(error.code, error.headers.get("X-Error-Code", ""))
            return None
        except TimeoutError:
            raise NotReached(f"{self.host} did not answer in time") from None
        except (URLError, HTTPException, OSError) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                raise NotReached(f"{self.host} did not answer in time") from None
            raise NotReached(f"{self.host} cannot be reached ({str(reason)[:200] or type(reason).__name__})") from None
        if len(data) > limit and not part:
            raise ValueError(f"{file} of {self.repo} is longer than {limit:,} bytes: no file of this kind is")
        return data[:limit]

    def _fetch(self, request: "Request", limit: int) -> bytes:
        """The first bytes of the answer, one more than ``limit`` at most."""
        data = bytearray()
        with self._open(request, timeout=TIMEOUT_S) as answer:
            while len(data) <= limit and (more := answer.read1(min(_READ_SIZE, limit + 1 - len(data)))):
                data += more
        return bytes(data)

    def _in_time(self, fetch: Callable[[], bytes]) -> bytes:
        """What ``fetch`` gives. In a thread of its own, which is left behind at the deadline: the timeout of a socket
        begins anew with every byte, and a server may send one at a time. Raises ``TimeoutError``."""
        ended: SimpleQueue[bytes | BaseException] = SimpleQueue()

        def run() -> None:
            try:
                ended.put(fetch())
            except BaseException as error:
                ended.put(error)

        threading.Thread(target=run, daemon=True).start()
        try:
            found = ended.get(timeout=max(0.0, self._until - time.monotonic()))
        except Empty:
            raise TimeoutError from None
        if isinstance(found, BaseException):
            raise found
        return found

    def _check_status(self, status: int, kind: str) -> None:
        """Raises ``ValueError`` unless all that is wrong is a file that is not there."""
        if status == 404 and kind not in ("RepoNotFound", "RevisionNotFound"):
            return
        page = f"{self.base}/{self.repo}"
        if status == 403 or kind == "GatedRepo":
            raise NotThere(
                f"{self.repo} is gated: accept its terms at {page}, and set HF_TOKEN to a token that may read it "
                f"(HTTP {status})"
            )
        if status in (401, 404):
            rule = "the token in HF_TOKEN may not see it" if self._token else "set HF_TOKEN if it is private or gated"
            raise NotThere(f"{self.host} shows no repository {self.repo}: {rule} (HTTP {status})")
        raise NotReached(f"{self.host} answers with HTTP {status}")


def _origin(address: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(address)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _token() -> str | None:
    """The user's token, as ``huggingface_hub`` finds it; None for none."""
    if os.environ.get("HF_HUB_DISABLE_IMPLICIT_TOKEN", "").strip().upper() in ("1", "ON", "YES", "TRUE"):
        return None
    found = os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN")
    if not found:
        home = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
        path = os.path.expanduser(os.environ.get("HF_TOKEN_PATH") or os.path.join(home, "token"))
        with suppress(OSError, ValueError):
            found = read_text(path, limit=_MOST_TOKEN_BYTES)
    found = (found or "").strip()
    if found and not re.fullmatch(r"[!-~]+", found):
        raise ValueError("HF_TOKEN must be one word of plain characters: copy it again, or unset it")
    return found or None


def _object(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} must hold a JSON object; it holds a {type(value).__name__}")
    return value
