"""What moves in the browser: ES modules of ours (``modules/``), each with an anywidget around it.

picture     the frame: from a module to a widget, and to an HTML page of its own
fit         one GPU as a vessel that weights and cache fill
painter     one block, painted by column, row or replicated
race        all-reduce algorithms on one clock
two_ranks   processes that talk, and one that is killed
topology    a machine's links, and a layout on it that is rearranged by hand
playhead    a pipeline's trace, played: tokens that move through the ranks, memory that fills
editor      a schedule to drag about, judged at once: beat 1F1B
writing     layouts that write the same text, token by token
"""

from typing import TYPE_CHECKING

from tplab.lazy import lazy_names

if TYPE_CHECKING:
    from tplab.lab.pictures.editor import ScheduleEditor as ScheduleEditor
    from tplab.lab.pictures.fit import WillItFit as WillItFit
    from tplab.lab.pictures.painter import ShardPainter as ShardPainter
    from tplab.lab.pictures.picture import Picture as Picture
    from tplab.lab.pictures.playhead import PlayHead as PlayHead
    from tplab.lab.pictures.race import Race as Race
    from tplab.lab.pictures.topology import Topology as Topology
    from tplab.lab.pictures.two_ranks import TwoRanks as TwoRanks
    from tplab.lab.pictures.writing import Writing as Writing

__getattr__, __dir__, __all__ = lazy_names(__name__)
