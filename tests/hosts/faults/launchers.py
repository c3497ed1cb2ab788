"""Who starts the ranks of a notebook: tplab with either engine, and two of its peers as their documents use them.

Each is the text of a cell that defines ``start``, ``close``, ``call(fn, timeout)``, which runs ``fn(index, size)`` on
every rank, ``connect`` and ``save``, which run on ranks.
"""

from dataclasses import dataclass

_TPLAB = """
from tplab import Cluster
cluster = None

def start():
    global cluster
    cluster = Cluster(**OPTIONS).start()

def attach():
    global cluster
    cluster = Cluster.attach(cluster_file=OPTIONS["cluster_file"])

def close():
    cluster.close()

def call(fn, timeout):
    def on_rank(rank):
        return fn(rank.index, rank.world_size)
    on_rank.__name__ = getattr(fn, "__name__", "cell")
    return cluster.run(on_rank, timeout=timeout)

def connect(address, index, size):
    import torch.distributed as dist
    dist.init_process_group("gloo", init_method=address, rank=index, world_size=size)

def save(path, text):
    from tplab import files
    files.write_text(path, text)
"""

# Engines run the ranks' code themselves, and form their group once.
_IPYPARALLEL = """
import uuid
import ipyparallel as ipp
engines = view = None

def start():
    global engines, view
    engines = ipp.Cluster(n=OPTIONS["n"])
    view = engines.start_and_connect_sync()[:]
    view.use_cloudpickle().get()
    address = "file://" + os.path.join(FOLDER, uuid.uuid4().hex)
    call(lambda index, size: connect(address, index, size), 60)

def close():
    engines.stop_cluster_sync()

def call(fn, timeout):
    size, client = len(view), view.client
    waiting = [client[index].apply_async(fn, index, size) for index in range(size)]
    limit = timeout if timeout and timeout < 60 else None  # the default of get() is to wait
    return [each.get(limit) for each in waiting]

def connect(address, index, size):
    import torch.distributed as dist
    if dist.is_initialized():
        dist.destroy_process_group()
    dist.init_process_group("gloo", init_method=address, rank=index, world_size=size)

def save(path, text):
    with open(path, "w") as file:
        file.write(text)
"""

# Every call forks ranks anew; what they return stays with them, so that values go through files.
_NOTEBOOK_LAUNCHER = """
import json, socket
import accelerate

def start():
    pass

close = start

def entered(fn, size):
    import torch.distributed as dist
    index = int(os.environ["RANK"])
    if fn is not pasted:
        dist.init_process_group("gloo")
    value = fn(index, size)
    with open(os.path.join(FOLDER, f"value{index}"), "w") as file:
        json.dump(value, file)
    if dist.is_initialized():
        dist.destroy_process_group()

def call(fn, timeout):
    size = OPTIONS["n"]
    port = {}
    if fn is not pasted:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = {"use_port": str(probe.getsockname()[1])}
    accelerate.notebook_launcher(entered, (fn, size), num_processes=size, **port)
    values = []
    for index in range(size):
        with open(os.path.join(FOLDER, f"value{index}")) as file:
            values.append(json.load(file))
        os.remove(file.name)
    return values

def connect(address, index, size):
    import torch.distributed as dist
    dist.init_process_group("gloo")

def save(path, text):
    with open(path, "w") as file:
        file.write(text)
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Launcher:
    """One way to have ranks in a notebook."""

    cell: str
    """What defines it in a notebook."""
    names: str = ""
    """How a peer's message names the rank; tplab's exceptions have it as data."""
    is_ours: bool = False
    """tplab: its cells are judged, those of the others are shown."""
    options: tuple[tuple[str, object], ...] = ()
    """Further arguments of ``Cluster``."""


LAUNCHERS = {
    "local": Launcher(cell=_TPLAB, is_ours=True, options=(("backend", "gloo"),)),
    "ipyparallel": Launcher(cell=_TPLAB, is_ours=True, options=(("backend", "gloo"), ("engine", "ipyparallel"))),
    "plain ipyparallel": Launcher(cell=_IPYPARALLEL, names=r"(?:[Ee]ngine |\[)(\d+)"),
    "notebook_launcher": Launcher(cell=_NOTEBOOK_LAUNCHER, names=r"rank\s*: (\d+)"),
}
