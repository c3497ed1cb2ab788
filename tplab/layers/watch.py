"""Know which layer is at work: for counters and timelines.

Not forward hooks, nor torch's ``ModTracker``, which is made of them: blocks call ``start`` and ``finish`` of their
layers, to run something else in between, and hooks see ``forward`` only.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

_METHODS = ("forward", "start", "finish")


@contextmanager
def watch_layers(module: nn.Module) -> Iterator[Callable[[], str]]:
    """Within the block, the function it gives returns the innermost layer at work, by its name in ``module``.

    ``""`` outside of any. Layers are those that have a strategy, that is, those that communicate, and norms.
    """
    at_work: list[str] = []
    wrapped: list[tuple[nn.Module, str, Any]] = []
    for name, layer in module.named_modules():
        if not hasattr(layer, "strategy") and not isinstance(layer, nn.RMSNorm | nn.LayerNorm):
            continue
        for method in _METHODS:
            if hasattr(layer, method):
                wrapped.append((layer, method, layer.__dict__.get(method)))
                layer.__dict__[method] = _announced(getattr(layer, method), name or type(layer).__name__, at_work)
    try:
        yield lambda: at_work[-1] if at_work else ""
    finally:
        for layer, method, before in reversed(wrapped):
            if before is None:
                layer.__dict__.pop(method, None)
            else:
                layer.__dict__[method] = before


def _announced(call: Callable[..., Any], name: str, at_work: list[str]) -> Callable[..., Any]:
    def announced(*args: Any, **kwargs: Any) -> Any:
        at_work.append(name)
        try:
            return call(*args, **kwargs)
        finally:
            at_work.pop()

    return announced
