"""What tests of intruders share: the attacker's process, and ranks that wait for him."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import torch.distributed as dist

OTHER_UID = 12345


class Attacker:
    """The process of ``attacker.py``.

    Args:
        mode: what it does, see there.
        mark: file that its command would write.
        within: puts the command line on another host.
        tables: of the hosts that it attacks; none: it attacks loopback.
    """

    def __init__(self, mode, mark, within=list, tables=()):
        self.mark = mark
        argv = [sys.executable, str(Path(__file__).with_name("attacker.py")), str(os.getuid()), mode, str(mark)]
        self.process = subprocess.Popen(
            within([*argv, *tables]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout.readline() == "ready\n"

    def end(self):
        """What it counted."""
        out, _ = self.process.communicate(timeout=20)
        assert "heard" not in out.rpartition("{")[0], out
        counts = ast.literal_eval(out.splitlines()[-1])
        assert counts["heard"] == 0
        assert not self.mark.exists(), "its command ran"
        self.mark.with_name("over").touch()
        return counts


def share(rank):
    """What a pickle of somebody else would run in."""
    group, out = dist.new_group([0, 1]), [None, None]
    dist.all_gather_object(out, f"secret of rank {rank.index}", group=group)
    return out


def be_attacked(folder, tables=("/proc/net/tcp",), outside=False):
    """Wait until the attacker has been at every port of this user on loopback, or has ended. On ``outside``: at every
    one that has another address, of the hosts whose tables these are."""
    import os
    import time

    deadline = time.monotonic() + 60
    while not os.path.exists(f"{folder}/over"):
        rows = []
        for table in tables:
            with open(table) as file:
                rows += [line.split() for line in file.read().splitlines()[1:]]
        ours = [row for row in rows if row[3] == "0A" and row[7] == str(os.getuid()) and row[1][:8] != "00000000"]
        chosen = [row for row in ours if row[1].startswith("0100007F") != outside]
        if all(os.path.exists(f"{folder}/{row[9]}") for row in chosen):
            return
        assert time.monotonic() < deadline, "nobody attacked"
        time.sleep(0.005)


def linger(rank, folder, *where):
    """From now on ranks that make a group, and know where the others listen, wait with connecting until the attacker
    has been there."""
    from tplab.cluster.rank_store import KernelStore

    wait = KernelStore.wait

    def wait_longer(self, *args):
        wait(self, *args)
        be_attacked(folder, *where)

    KernelStore.wait = wait_longer


SECRETS = [["secret of rank 0", "secret of rank 1"]] * 2
