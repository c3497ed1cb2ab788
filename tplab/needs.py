"""The layers of tplab's dependencies, and one sentence for whoever lacks one: what needs what, and how to get it.

tplab's core plans and predicts; ranks, panels and a JupyterLab of one's own are layers of packages, which pip adds
(``pip install "tplab[run]"``). What needs a package imports it, and where that
fails, the error of the import becomes a :class:`MissingLayer`, which is an ``ImportError`` still.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Final

LAYERS: Final[Mapping[str, tuple[str, ...]]] = {
    "run": ("torch", "cloudpickle", "tqdm", "psutil", "pynvml", "safetensors"),
    "notebook": (
        "IPython",
        "traitlets",
        "ipykernel",
        "ipywidgets",
        "anywidget",
        "nbformat",
        "jupyter_client",
        "jupyter_core",
    ),
    "lab": ("jupyterlab", "jupyter_server"),
    "demo": ("voila",),
    "multinode": ("ipyparallel",),
}
"""Name of a layer, as pip takes it -> the modules that it brings, as Python imports them."""
_PACKAGES = {"pynvml": "nvidia-ml-py", "IPython": "ipython"}
"""What people install, where it is not called as the module is."""


class MissingLayer(ModuleNotFoundError):
    """Packages are not installed that layers of tplab's would bring."""

    def __init__(self, what: str, *modules: str) -> None:
        self._given = what, *modules
        tops = [module.split(".")[0] for module in modules]
        layers = ",".join(dict.fromkeys(str(layer_of(top)) for top in tops))
        packages = ", ".join(_PACKAGES.get(top, top) for top in tops)
        are = "is" if len(tops) == 1 else "are"
        super().__init__(
            f'{what} needs {packages}, which {are} not installed here: pip install "tplab[{layers}]"', name=modules[0]
        )

    def __reduce__(self) -> tuple[type["MissingLayer"], tuple[str, ...]]:
        """An error of a rank travels to the kernel; by its message alone it could not be made again."""
        return type(self), self._given


def layer_of(module: str | None) -> str | None:
    """The layer that brings a module; None for modules of nobody's or of the core."""
    top = (module or "").split(".")[0]
    return next((layer for layer, modules in LAYERS.items() if top in modules), None)


@contextmanager
def needed_by(what: str) -> Iterator[None]:
    """Where an import in the block fails for lack of a layer, say that it is ``what`` that needs it.

    Raises:
        MissingLayer: instead of a ``ModuleNotFoundError`` about a package of a layer; every other error stays.
    """
    try:
        yield
    except MissingLayer:
        raise
    except ModuleNotFoundError as error:
        if error.name is None or layer_of(error.name) is None:
            raise
        raise MissingLayer(what, error.name) from error


def missing(modules: Iterable[str]) -> list[str]:
    """Those that are not installed; none is imported."""
    from importlib.util import find_spec  # not before it is needed: every rank imports this module first

    return [module for module in modules if find_spec(module) is None]


def check(what: str, *modules: str) -> None:
    """Raise :class:`MissingLayer` unless all ``modules`` are installed, which ``what`` imports later."""
    if lacking := missing(modules):
        raise MissingLayer(what, *lacking)


class Later:
    """Stands for a module, which is imported when something of it is first asked for.

    For modules that some functions of a file need and the file itself does not. Type checkers are shown the import::

        if TYPE_CHECKING:
            import psutil
        else:
            psutil = Later("psutil", "tplab.cluster")
    """

    def __init__(self, module: str, what: str) -> None:
        self._module, self._what = module, what

    def __getattr__(self, name: str) -> Any:
        with needed_by(self._what):
            return getattr(import_module(self._module), name)
