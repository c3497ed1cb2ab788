"""``python -m tplab.cli``, which torchrun starts on every rank."""

import os
import sys
import time

from tplab.cli.command import main
from tplab.cluster.torchrun import speaks, under_torchrun

_SAID_WITHIN_S = 5.0

try:
    status = main()
    if status and not speaks():
        # torchrun ends all ranks of a host as soon as one has ended: rank 0, which found the same, is to say it first.
        time.sleep(_SAID_WITHIN_S)
except SystemExit as ended:  # after --help, or of a rank whose fault has been said
    if not under_torchrun():
        raise
    status = int(ended.code or 0)
if under_torchrun():
    # Not through Python's own end: threads of torch that wait for the interpreter then would abort the process.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
sys.exit(status)
