"""Does my model fit, and on what? The memory model of ``advisor``, asked by name. Pure: no torch, no numpy.

  question   a model on layouts of one kind of GPU: does it hold the users, how many, how long
  fit        the answer, in a sentence and in numbers
  changes    what to change, tried before it is named
  asked      ``fits`` and ``offers``
  drawn      the answer as a bar, in a terminal and as HTML

Not called ``fits``: a package of a public function's name would take its place. Public names load on first use.
"""

from typing import TYPE_CHECKING

from tplab.lazy import lazy_names

if TYPE_CHECKING:
    from tplab.topology.capacity.asked import fits as fits
    from tplab.topology.capacity.asked import offers as offers
    from tplab.topology.capacity.fit import Change as Change
    from tplab.topology.capacity.fit import Fit as Fit

__getattr__, __dir__, __all__ = lazy_names(__name__)
