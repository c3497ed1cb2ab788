"""For all tests, notebooks among them: who runs them is no learner, and leaves no progress beside the notebooks."""

import os
import signal

os.environ.setdefault("TPLAB_PROGRESS", "off")

# A shell that runs them in the background has SIGINT ignored, and so would be what they start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
