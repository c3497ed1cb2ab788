"""Notebook 07's live panels: what the ranks' links and processors do, and layouts run beside their predictions."""

from typing import Any

import ipywidgets as widgets

from tplab.cluster import Cluster, DerivedRun
from tplab.collectives.emulated_link import EmulatedLink
from tplab.lab.choice import Choice
from tplab.lab.figures.topology import link_figure, measured_links_frame
from tplab.lab.figures.verification import (
    calibration_figure,
    explain_calibration,
    explain_verification,
    verification_figure,
)
from tplab.lab.panels import html
from tplab.lab.panels.base import Drawing, RunPanel, Submitted
from tplab.lab.panels.controls import Settings, offer_links, wide
from tplab.lab.panels.pool import Pool
from tplab.lab.panels.run_state import Work
from tplab.measure import joined_badge, link_text
from tplab.models.shards import Layout, can_cut
from tplab.models.spec import ModelConfig
from tplab.topology.advisor.calibration import Calibration
from tplab.topology.advisor.workload import Workload
from tplab.topology.calibration.run import submit_calibrate
from tplab.topology.verification.run import Verification, submit_verify

LINKS: dict[str, EmulatedLink | None] = {
    "the ranks' own": None,
    "0.2 ms, 1 GB/s": EmulatedLink(latency_us=200, bandwidth_GBps=1.0),
    "2 ms, 0.2 GB/s": EmulatedLink(latency_us=2000, bandwidth_GBps=0.2),
    "5 ms, 0.05 GB/s": EmulatedLink(latency_us=5000, bandwidth_GBps=0.05),
}
"""Declared links between the ranks: fast and slow beside a CPU's matmuls, as NVLink and a network are to a GPU."""
_QUICK: dict[str, Any] = {
    "rounds": 2,
    "sizes": (1 << 12, 1 << 16, 1 << 20),
    "tokens": (1, 4, 16, 64),
    "shapes": ((512, 512), (1024, 1024), (2048, 2048), (6144, 2048)),
}
"""What is measured on a CPU in some five seconds; ``calibrate`` by itself takes several times as long, and is surer."""
_QUICK_ON_GPUS: dict[str, Any] = {
    "rounds": 2,
    "sizes": (1 << 12, 1 << 16, 1 << 20, 1 << 24),
    "tokens": (1, 4, 16, 64),
    "widths": (1024, 2048, 4096),
}
_THOROUGH: dict[str, Any] = {}
_MEASURES = {"tokens/s": "output_tokens_per_s", "per token": "tpot_ms", "first token": "ttft_ms"}
"""Columns by view. Tokens/s come first: that is what layouts are ranked by, in the words below."""


class CalibrationPanel(RunPanel):
    """Calibrate the pool's ranks over their own links or declared ones; a matrix of pairs, and all-reduces by size.

    ``calibration`` is the last one, of a run that was stopped what it had; ``link`` the link it was made over.
    """

    asks_ranks = True

    def __init__(self, pool: Pool) -> None:
        named = {
            "link": widgets.Dropdown(options=list(LINKS), description="link", **wide()),
            "effort": widgets.Dropdown(options=("quick", "thorough"), description="effort", **wide()),
        }
        self.calibration: Calibration | None = None
        self.link: EmulatedLink | None = None
        super().__init__(pool, title="Calibrate", named=named, views=("pairs", "all-reduces"), height=260)
        self.add_class("tplab-calibration")

    def suit(self, choice: Choice) -> None:
        offer_links(self._named["link"], list(LINKS), choice)

    def submit(self, cluster: Cluster, settings: Settings) -> Submitted:
        link = LINKS[settings["link"]]
        quick = _QUICK_ON_GPUS if cluster.backend == "nccl" else _QUICK
        effort = quick if settings["effort"] == "quick" else _THOROUGH
        handle = submit_calibrate(cluster, links=link, on_report=self.on_report, **effort)
        return handle.run, (handle, link)

    def draw(self, work: Work) -> Drawing:
        handle, link = work.plan
        made: Calibration = handle.partial()
        of_pairs = self._look.value == "pairs"
        if made.sends or made.all_reduce:  # what there is, also where this view shows none of it
            self.calibration, self.link = made, link
        if not (made.sends if of_pairs else made.all_reduce):
            return None, ""
        badge = joined_badge(work.badge, link_text(link))
        if of_pairs:
            frame = measured_links_frame(made)
            title = "Messages between every pair"
            figure = link_figure(frame, title=title, badge=badge, what="rank")
        else:
            figure = calibration_figure(made, badge=badge)
        return figure, html.quiet(explain_calibration(made))


class VerifyPanel(RunPanel):
    """Every layout of a small model on the pool's ranks, run for real beside its prediction.

    The prediction is from the calibration of a ``CalibrationPanel``, over the same link. ``verification`` is the last
    result; ``joined`` all of the session's, one per link.
    """

    asks_ranks = True

    def __init__(self, calibrated: CalibrationPanel) -> None:
        self._calibrated = calibrated
        named = {
            "hidden": widgets.Dropdown(options=(256, 512, 1024, 2048, 4096), description="hidden", **wide()),
            "layers": widgets.IntSlider(value=3, min=2, max=8, description="layers", **wide()),
            "concurrency": widgets.SelectionSlider(options=(1, 2, 4, 8), value=1, description="in flight", **wide()),
            "tokens": widgets.SelectionSlider(options=(4, 8, 16, 32), value=8, description="tokens out", **wide()),
            "rounds": widgets.IntSlider(value=2, min=1, max=5, description="turns", **wide()),
        }
        self._handle: DerivedRun[Verification] | None = None
        self._all: dict[str, Verification] = {}
        super().__init__(calibrated.pool, title="Verify", named=named, views=tuple(_MEASURES), height=460)
        self.add_class("tplab-verify")

    def suit(self, choice: Choice) -> None:
        hidden, layers = choice.pick(cpu=(2048, 3), shared=(2048, 4), own=(4096, 4))
        self._named.put({"hidden": hidden, "layers": layers})

    @property
    def verification(self) -> Verification | None:
        """What the last run has measured."""
        return None if self._handle is None else self._handle.partial()

    @property
    def joined(self) -> Verification:
        """The last result over each link. Raises ``ValueError`` before the first."""
        return Verification.joined(list(self._all.values()))

    def submit(self, cluster: Cluster, settings: Settings) -> Submitted:
        calibration = self._calibrated.calibration
        if calibration is None:
            raise ValueError("there is no calibration yet: press Run in the panel above first")
        config = verified_model(settings["hidden"], settings["layers"])
        self._handle = submit_verify(
            cluster,
            all_layouts(config, cluster.num_ranks),
            config,
            Workload(input_length=16, output_length=settings["tokens"], concurrency=settings["concurrency"]),
            calibration=calibration,
            links=self._calibrated.link,
            rounds=settings["rounds"],
            repeats=1,
            on_report=self.on_report,
        )
        return self._handle.run, self._handle

    def draw(self, work: Work) -> Drawing:
        made: Verification = work.plan.partial()
        if made.frame.empty:
            return None, ""
        self._all[made.frame["setting"].iloc[0]] = made
        figure = verification_figure(made.frame, badge=made.badge, measure=_MEASURES[self._look.value])
        notes = "".join(html.quiet(f"{note}.") for note in made.notes)
        return figure, html.quiet(explain_verification(made)) + notes


def verified_model(hidden: int = 2048, layers: int = 3) -> ModelConfig:
    """A Llama that is run for real: wide enough for its matmuls to matter beside a link."""
    return ModelConfig(
        model_type="llama",
        vocab_size=2000,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_layers=layers,
        num_heads=hidden // 64,
        num_kv_heads=hidden // 128,
        head_dim=64,
        max_positions=512,
    )


def all_layouts(config: ModelConfig, num_ranks: int) -> list[Layout]:
    """TP × PP of up to ``num_ranks`` ranks in powers of two, one copy each: what one request can use."""
    powers = [1 << power for power in range(num_ranks.bit_length()) if 1 << power <= num_ranks]
    return [
        Layout.of(config, tp, pp) for tp in powers for pp in powers if tp * pp <= num_ranks and can_cut(config, tp, pp)
    ]
