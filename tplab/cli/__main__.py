"""``python -m tplab.cli``, which torchrun starts on every rank."""

import sys

from tplab.cli.command import main

sys.exit(main())
