"""What a notebook server does when a notebook is saved: the views of our widgets are taken out.

JupyterLab stores a widget's view with the cell, a reference to a model that ends with the kernel: reopened, it is
"Error displaying widget: model not found". Beside each view of ours stands a picture that needs no kernel
(``tplab.lab.still``), so the view can go. Other people's widgets are left as they are, and so are cells of ours that
were shown before there were such pictures.

A Jupyter server loads this module by itself once tplab is installed beside it: a file in ``etc/jupyter`` says so.
It imports nothing of the lab: a server is no kernel.
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

MARK: Final = "tplab"
"""Key of an output's metadata; ``{"still": id}`` says of which widget it is a picture, ``"empty"`` that it is blank."""
WIDGET_VIEW: Final = "application/vnd.jupyter.widget-view+json"
WIDGET_STATE: Final = "application/vnd.jupyter.widget-state+json"
PICTURE: Final = "application/vnd.tplab.picture+json"
"""A moving picture of ours as ``picture`` (its module) and ``state`` (its traits): what a site draws live."""
PLOTLY: Final = "application/vnd.plotly.v1+json"

_REFERENCE = re.compile(r"IPY_MODEL_(\w+)")


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    return [{"module": "tplab.lab.saving"}]


def _load_jupyter_server_extension(server: Any) -> None:
    """Called by Jupyter Server once its contents manager is there. Hooks that somebody configured stay."""
    register = getattr(server.contents_manager, "register_pre_save_hook", None)
    if register is None:
        server.log.info("tplab: this contents manager takes no hooks; live panels are saved as they are")
    else:
        register(before_save)


def before_save(model: dict[str, Any], **_: Any) -> None:
    """A pre-save hook of ``ContentsManager``. Changes the notebook in ``model`` in place; the server logs what it
    raises, and saves."""
    content = model.get("content")
    if model.get("type") == "notebook" and isinstance(content, dict):
        strip(content)


def strip(notebook: Any) -> int:
    """Take the views out of a notebook that have a still in their cell, and the state that only they need.

    Args:
        notebook: as JSON or as nbformat reads it; changed in place.

    Returns how many views it took.
    """
    taken: set[str] = set()
    kept: set[str] = set()
    for cell in _list(_map(notebook).get("cells")):
        outputs = _list(_map(cell).get("outputs"))
        views = [_view(output) for output in outputs]
        stills = [_still(output) for output in outputs]
        mine = {*views} & {*stills} - {""}
        taken |= mine
        kept |= {*views} - mine
        if any(stills):
            cell["outputs"] = [
                output
                for output, view, still in zip(outputs, views, stills, strict=True)
                if view not in mine and not (still and output["metadata"][MARK].get("empty"))
            ]
    if taken:
        _strip_state(notebook, taken, kept)
    return len(taken)


def _view(output: Any) -> str:
    """Model of the widget that an output is a view of, or nothing."""
    return str(_map(_map(_map(output).get("data")).get(WIDGET_VIEW)).get("model_id") or "")


def _still(output: Any) -> str:
    """Model of the widget that an output is a still of, or nothing."""
    return str(_map(_map(_map(output).get("metadata")).get(MARK)).get("still") or "")


def _map(value: Any) -> Mapping[str, Any]:
    """A damaged part of a notebook counts as an empty one, and is saved as it is."""
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _strip_state(notebook: Any, taken: set[str], kept: set[str]) -> None:
    state = _map(_map(_map(notebook.get("metadata")).get("widgets")).get(WIDGET_STATE)).get("state")
    if not isinstance(state, dict):
        return
    ours = _reached(state, taken)
    for model in ours - _reached(state, set(state) - ours | kept):
        del state[model]
    if not state:
        del notebook["metadata"]["widgets"]


def _reached(state: Mapping[str, Any], models: Iterable[str]) -> set[str]:
    """The models and what they refer to, as far as their state is there."""
    found: set[str] = set()
    left = [model for model in models if model in state]
    while left:
        model = left.pop()
        if model not in found:
            found.add(model)
            left += [each for each in _REFERENCE.findall(json.dumps(state[model])) if each in state]
    return found
