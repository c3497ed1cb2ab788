"""For all tests, notebooks among them: who runs them is no learner, and leaves no progress beside the notebooks."""

import os

os.environ.setdefault("TPLAB_PROGRESS", "off")
