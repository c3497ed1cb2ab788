"""``python -m tplab.cli``, which torchrun starts on every rank."""

import os
import sys

from tplab.cli.command import main
from tplab.cluster.torchrun import under_torchrun

status = main()
if under_torchrun():
    # Not through Python's own end: threads of torch that wait for the interpreter then would abort the process.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
sys.exit(status)
