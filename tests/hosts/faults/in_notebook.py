"""The first cell of every notebook of the fault matrix: what its ranks do, word for word the same for tplab and for its
peers. Run by a kernel as text, so that all of it travels as functions of a cell do."""

import os
import resource
import signal
import subprocess
import time

FOLDER = os.environ["FAULTS_FOLDER"]  # of this notebook; all hosts have it
DISK = os.environ["FAULTS_DISK"]  # of 64 KiB
PAUSE_S = 0.3  # the other ranks are in the collective by then


def stamp():
    """Note when the fault happened."""
    path = os.path.join(FOLDER, "at")
    with open(path + ".new", "w") as file:
        file.write(repr(time.time()))
    os.replace(path + ".new", path)


def meet(count=1024):
    """Wait for all the others in a collective; what it gives is the number of ranks."""
    import torch
    import torch.distributed as dist

    x = torch.ones(count)
    dist.all_reduce(x)
    return x[-1].item()


def culprit(index, size):
    """Whether this rank is the one to blame: the last. Where it is, the others wait for it in a collective by now."""
    if index == size - 1:
        time.sleep(PAUSE_S)
        stamp()
        return True
    return False


# The faults: each a function of the rank's index and the number of ranks.


def well(index, size):
    return meet()


def slow(index, size):
    if index == size - 1:
        stamp()
    time.sleep(4)
    return meet()


def raises(index, size):
    if culprit(index, size):
        raise ValueError("the planted one")
    return meet()


def killed(index, size):
    subprocess.Popen(["sleep", "600"], start_new_session=True)  # as a data loader or a compiler would be
    if culprit(index, size):
        os.kill(os.getpid(), signal.SIGKILL)
    return meet()


def stopped(index, size):
    if culprit(index, size):
        os.kill(os.getpid(), signal.SIGSTOP)
    return meet()


def mismatched(index, size):
    return meet(2048 if culprit(index, size) else 1024)


def absent(index, size):
    return None if culprit(index, size) else meet()


def short_of_memory(index, size):
    if culprit(index, size):
        import torch

        with open("/proc/self/statm") as file:
            mapped = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + (200 << 20), resource.RLIM_INFINITY))
        torch.ones(1 << 30)
    return meet()


def killed_for_memory(index, size):
    """By the system: the rank is put into a control group of little memory, by which it finds its file gone."""
    if index == size - 1:
        with open(os.path.join(FOLDER, "pid"), "w") as file:
            file.write(str(os.getpid()))
        culprit(index, size)
        while os.path.exists(file.name):
            time.sleep(0.01)
        bytearray(b"x") * (500 << 20)
    return meet()


def hung(index, size):
    subprocess.Popen(["sleep", "600"], start_new_session=True)
    if culprit(index, size):
        time.sleep(600)
    return meet()


def full_disk(index, size):
    if culprit(index, size):
        save(os.path.join(DISK, "result.csv"), "x" * (1 << 20))  # noqa: F821
    return meet()


def pasted(index, size):
    """A script from elsewhere, with the port that every tutorial has."""
    culprit(index, size)
    connect("tcp://127.0.0.1:29500", index, size)  # noqa: F821
    return meet()


# More, for the soak.


def raises_everywhere(index, size):
    """All ranks have answered: they stay."""
    stamp()
    raise ValueError(f"from {index}")


def returns_a_lock(index, size):
    import threading

    stamp()
    return threading.Lock()


def talks(index, size):
    """A thousand lines, and as many bytes in the value."""
    stamp()
    for number in range(1000):
        print("line", number, "of rank", index)
    meet()
    return "x" * 1000


def shares_memory(index, size):
    """A tensor in shared memory, whose owner ends without a word."""
    import torch

    kept = torch.zeros(100_000).share_memory_()
    if culprit(index, size):
        os._exit(5)
    return meet() + kept[0].item()


# What a cell of the notebook does; ``call``, ``start``, ``close``, ``connect`` and ``save`` are the launcher's.


def attempt(fault, timeout=60):
    """Run one of them on every rank: its values, or what was raised."""
    told = {"error": "", "rank": None, "host": "", "text": "", "values": None}
    try:
        told["values"] = call(fault, timeout)  # noqa: F821
    except BaseException as error:
        told["error"], told["text"] = type(error).__name__, str(error)[:4000]
        told["rank"], told["host"] = getattr(error, "rank", None), getattr(error, "host", "")
    told["at"] = time.time()
    return told
