"""Notebook 08's profile: where one prefill and one decode step of a model spend their time on the pool's ranks."""

import ipywidgets as widgets

from tplab.cluster import Cluster, DerivedRun
from tplab.lab.figures.profile import explain_profile, profile_figure
from tplab.lab.panels import html
from tplab.lab.panels.base import Drawing, RunPanel, Submitted
from tplab.lab.panels.controls import Settings, wide
from tplab.lab.panels.pool import Pool
from tplab.lab.panels.run_state import Work
from tplab.models.spec import ModelConfig
from tplab.topology.advisor.calibration import Calibration
from tplab.topology.verification.step_profile import StepProfile, submit_profile

_WHERE_THEY_WORK = "auto"  # a drop-down whose value is None shows nothing


class ProfilePanel(RunPanel):
    """TP (the rest of the pool's ranks are stages), sequences, prompt, dtype, CUDA graphs; terms as measured from
    kernels, beside what the advisor predicts.

    ``profile`` is the last result. ``calibration``, when set, is what predictions are made from; without it they are
    from the spec sheet of the GPUs, and there are none on a CPU.

    Args:
        pool: the ranks.
        model: what they run; its weights have no meaning.
        calibration: of these ranks.
    """

    def __init__(self, pool: Pool, model: ModelConfig, *, calibration: Calibration | None = None) -> None:
        look = wide(96)
        named = {
            "tp": widgets.Dropdown(options=(1, 2, 4, 8), description="TP", **look),
            "batch": widgets.Dropdown(options=(1, 4, 16, 64), description="Sequences", **look),
            "prompt_length": widgets.Dropdown(options=(32, 128, 512, 1024), value=128, description="Prompt", **look),
            "dtype": widgets.Dropdown(options=("float32", "bfloat16"), description="Dtype", **look),
            "cuda_graphs": widgets.Dropdown(
                options=[("where they work", _WHERE_THEY_WORK), ("off", False)], description="CUDA graphs", **look
            ),
        }
        self.model, self.calibration = model, calibration
        self._handle: DerivedRun[StepProfile] | None = None
        super().__init__(pool, title="Profile of a step", named=named, height=460)

    @property
    def profile(self) -> StepProfile | None:
        """The last result; None before there is one, and after a run that failed."""
        handle = self._handle
        return handle.result() if handle is not None and handle.done() and handle.exception() is None else None

    def submit(self, cluster: Cluster, settings: Settings) -> Submitted:
        tp = settings["tp"]
        if cluster.num_ranks % tp:
            raise ValueError(
                f"TP {tp} does not divide the pool's {cluster.num_ranks} ranks: choose another TP, or start a pool of "
                f"another size"
            )
        self._handle = submit_profile(
            cluster,
            self.model,
            **settings | {"cuda_graphs": None if settings["cuda_graphs"] == _WHERE_THEY_WORK else False},
            pp=cluster.num_ranks // tp,
            calibration=self.calibration,
            on_report=self.on_report,
        )
        return self._handle.run, self._handle

    def draw(self, work: Work) -> Drawing:
        if not work.plan.done() or work.plan.exception() is not None:
            return None, ""
        profile: StepProfile = work.plan.result()
        frame, layout = profile.frame(), profile.generation.layout
        figure = profile_figure(frame, title=f"{layout}: where the time goes", badge=profile.badge)
        return figure, html.quiet(
            " ".join([explain_profile(frame), *(f"{note[:1].upper()}{note[1:]}." for note in profile.notes)])
        )
