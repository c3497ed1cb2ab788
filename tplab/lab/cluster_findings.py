"""What the answers of a cluster's hosts mean: pure, from ``host -> answer`` to findings of ``tplab doctor --cluster``.

Where all hosts are alike there is one line for all; where they are not, the line says which hosts differ, and in what.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from tplab.cluster.hosts.networks import BRIDGES, Address, Interface, Network
from tplab.cluster.hosts.reach import Reached, Unreached
from tplab.cluster.hosts.survey import SCHEDULERS
from tplab.lab.finding import Check, Status
from tplab.shown import listed, number

HERE = "this kernel"
"""The name of the kernel's own side in a comparison with hosts."""
RANK_GB = 0.3
_CLOCKS_S = 1.0
_SLOW_TRIP_S = 0.1
_FILES = 1024
_LOCKED_BYTES = 64 * 1024**2
_PAIRS = 8  # of those that fail, so many by name
_MUST_BE_EQUAL = {
    "Python": "functions cross from one Python to another as its own bytecode, which other releases do not read",
    "tplab": "kernel, agents and ranks would not understand each other",
    "torch": "ranks of different releases need not agree on what they send each other",
    "NCCL": "NCCL refuses to connect ranks of different versions",
}
_INSTALL = "Install the same on all: pip install -c constraints.txt, or one environment in a folder that all hosts see."


@dataclass(frozen=True, slots=True)
class Trip:
    """One call to a host and back."""

    seconds: float
    """How long it took, by the kernel's clock."""
    offset_s: float
    """How far the host's clock was ahead of the kernel's, taken at the middle of the trip."""


def versions(by_host: Mapping[str, Mapping[str, str]]) -> list[Check]:
    """Whether all that say one have the same of each; ``by_host`` has the kernel under :data:`HERE`."""
    names = list(dict.fromkeys(name for each in by_host.values() for name in each))
    equal, different = [], []
    for name in names:
        values = {host: each[name] or "none" for host, each in by_host.items() if name in each}
        if len(set(values.values())) == 1:
            value = next(iter(values.values()))
            equal += [f"{name} {value}"] if value != "none" else []
            continue
        needed = _MUST_BE_EQUAL.get(name)
        if name == "Python" and len({value.rpartition(".")[0] for value in values.values()}) == 1:
            needed = None  # releases that differ in their last number read each other
        different.append(
            Check(
                name=name,
                found=_grouped(values),
                status="problem" if needed else "note",
                meaning=f"Not the same everywhere: {needed or 'that may work, and is the first to suspect'}.",
                cure=_INSTALL,
            )
        )
    found = f"equal on {_names(by_host)}: {', '.join(equal)}"
    return ([Check(name="versions", found=found)] if equal else []) + different


def controller(trips: Mapping[str, Sequence[Trip]]) -> Check:
    """How long a call to each host and back takes."""
    times = {host: median(trip.seconds for trip in each) for host, each in trips.items() if each}
    count = min((len(each) for each in trips.values() if each), default=0)
    said = ", ".join(f"{host} {number(1e3 * seconds)} ms" for host, seconds in times.items())
    found = f"answers; a call and back takes: {said} (measured; the median of {count})"
    slow = [host for host, seconds in times.items() if seconds > _SLOW_TRIP_S]
    if not slow:
        return Check(name="controller", found=found)
    return Check(
        name="controller",
        found=found,
        status="note",
        meaning=f"Every start, call and line of output of {_names(slow)} crosses this way; what ranks send each other "
        "does not.",
        cure="Run the notebook nearer to the controller, or look what keeps these hosts or the controller busy.",
    )


def clocks(trips: Mapping[str, Sequence[Trip]]) -> Check:
    """How far each host's clock is from the kernel's: by the shortest trip, within half of it."""
    said, wrong = [], []
    for host, each in trips.items():
        if not each:
            continue
        best = min(each, key=lambda trip: trip.seconds)
        within = best.seconds / 2
        ahead = f"{number(abs(best.offset_s) * 1e3)} ms {'ahead' if best.offset_s > 0 else 'behind'}"
        said.append(f"{host} {ahead if abs(best.offset_s) > within else 'equal'}, to within {number(within * 1e3)} ms")
        wrong += [host] if abs(best.offset_s) - within > _CLOCKS_S else []
    found = f"beside this kernel's: {'; '.join(said)} (measured)"
    if not wrong:
        return Check(name="clocks", found=found)
    return Check(
        name="clocks",
        found=found,
        status="note",
        meaning=f"Times in files and logs of {_names(wrong)} cannot be held beside others. Nothing that tplab measures "
        "goes by them.",
        cure="Set the clocks by NTP (chronyc makestep), or ask whoever runs these hosts.",
    )


def interfaces(
    addresses: Mapping[str, Address], networks: Mapping[str, Network], found: Sequence[Reached | Unreached]
) -> list[Check]:
    """Which interface each host uses, which pairs connect on it, and whether packets have one size."""
    named = ", ".join(f"{host} {at.interface} {at.address}" for host, at in addresses.items())
    reached = [each for each in found if isinstance(each, Reached)]
    failed = [each for each in found if isinstance(each, Unreached)]
    checks = []
    if failed:
        checks += [_unreached(each, addresses) for each in failed[:_PAIRS]]
        if len(failed) > _PAIRS:
            rest = f"{len(failed) - _PAIRS} more pairs of hosts do not connect either"
            checks.append(Check(name="network", found=rest, status="problem", meaning="See those above.", cure=_WAY))
    elif reached:
        times = [1e3 * each.seconds for each in reached]
        span = f"{number(min(times), 2)} to {number(max(times), 2)} ms, measured"
        found_text = f"{named}; {len(reached)} ways between hosts, all connect ({span})"
        checks.append(Check(name="network", found=found_text))
    else:
        checks.append(Check(name="network", found=f"{named} (one host: there is nobody to connect to)"))
    other_way = [each for each in reached if each.source != addresses[each.from_host].address]
    if other_way:
        said = listed(f"{each.from_host} reaches {each.to_host} from {each.source}" for each in other_way)
        checks.append(
            Check(
                name="way",
                found=said,
                status="note",
                meaning="Data leaves by another interface than it arrives on; its rate is that of the slower one.",
                cure="Give interface= the one that both ends use.",
            )
        )
    cards = {host: _card(networks[host], at) for host, at in addresses.items()}
    return [*checks, *_packets({host: card for host, card in cards.items() if card is not None})]


def _unreached(pair: Unreached, addresses: Mapping[str, Address]) -> Check:
    at = addresses[pair.to_host]
    return Check(
        name=f"{pair.from_host} to {pair.to_host}",
        found="does not connect",
        status="problem",
        meaning=f"{pair.from_host} cannot connect to {pair.to_host} at {at.address} (interface {at.interface}): "
        f"{pair.reason}.",
        cure=_WAY,
    )


_WAY = "Name the network that joins the hosts (--interface), or let their firewalls pass TCP between them on all ports."


def _card(network: Network, at: Address) -> Interface | None:
    return next((each for each in network.interfaces if each.name == at.interface), None)


def _packets(cards: Mapping[str, Interface]) -> list[Check]:
    sizes = {host: f"{card.mtu} bytes" for host, card in cards.items()}
    if len(set(sizes.values())) < 2:
        return []
    return [
        Check(
            name="MTU",
            found=_grouped(sizes),
            status="note",
            meaning="The largest packet differs between hosts: TCP takes the smaller one, and RDMA may not connect.",
            cure="Set it alike: ip link set dev eth0 mtu 9000, on the switches too.",
        )
    ]


def own_names(by_host: Mapping[str, tuple[str, Sequence[str]]]) -> Check:
    """Whether a host's own name stands for an address that others can use."""
    wrong = {}
    for host, (_, addresses) in by_host.items():
        back = [each for each in addresses if each.startswith("127.") or each == "::1"]
        if not addresses or back:
            wrong[host] = f"for {', '.join(back)}" if back else "for nothing"
    if not wrong:
        return Check(name="hostnames", found=f"stand for addresses on {_names(by_host)}")
    return Check(
        name="hostnames",
        found=f"stand {_grouped(wrong)}",
        status="note",
        meaning="What goes by the hostname there (torchrun's rendezvous, gloo by itself) gives other hosts an address "
        "that leads back to themselves. tplab's ranks are told their interface, and do not.",
        cure="In /etc/hosts, let the name stand for the host's address; or give torchrun addresses.",
    )


def nccl(views: Mapping[str, Mapping[str, Any]], networks: Mapping[str, Network]) -> list[Check]:
    """What NCCL would take by itself, and variables that differ."""
    said = {}
    for host, view in views.items():
        taken = nccl_interfaces(networks[host].interfaces, view["variables"].get("NCCL_SOCKET_IFNAME", ""))
        devices = ", ".join(view["devices"]) or "no InfiniBand or RoCE device"
        said[host] = f"{', '.join(taken) or 'no interface'} by itself; {devices}"
    checks = [Check(name="NCCL's view", found=_grouped(said))]
    idle = [host for host, view in views.items() if view["devices"] and not any("ACTIVE" in d for d in view["devices"])]
    if idle:
        checks.append(
            Check(
                name="InfiniBand",
                found=f"no active port on {_names(idle)}",
                status="note",
                meaning="NCCL falls back to sockets there.",
                cure="Look at ibstat, and at the cable and the subnet manager.",
            )
        )
    for name in sorted({name for view in views.values() for name in view["variables"]}):
        values = {host: view["variables"].get(name, "not set") for host, view in views.items()}
        if len(set(values.values())) > 1:
            checks.append(
                Check(
                    name=name,
                    found=_grouped(values),
                    status="note",
                    meaning="Set on some hosts and not on others: NCCL's ranks may choose ways that do not meet.",
                    cure="Set it on all hosts where the engines are started, or on none.",
                )
            )
    return checks


def nccl_interfaces(cards: Sequence[Interface], asked: str = "") -> list[str]:
    """The interfaces that NCCL's sockets would use: as ``NCCL_SOCKET_IFNAME`` says (beginnings of names; ``=`` before
    them: whole names; ``^``: all others), else those that begin with ``ib``, else all but bridges and loopback."""
    usable = [each.name for each in cards if each.up and each.addresses]
    if asked:
        names = tuple(asked.lstrip("^=").split(","))
        if asked.startswith("^"):
            inverse = names if not asked.startswith("^=") else ()
            return [each for each in usable if not each.startswith(inverse) and each not in names]
        return [each for each in usable if (each in names if asked.startswith("=") else each.startswith(names))]
    fast = [each for each in usable if each.startswith("ib")]
    back = {each.name for each in cards if each.loopback}
    return fast or [each for each in usable if not each.startswith(BRIDGES) and each not in back]


def capacity(by_host: Mapping[str, Mapping[str, Any]]) -> list[Check]:
    """GPUs, cores and memory of each host."""
    gpus = {host: _gpus_of(each["gpus"]) for host, each in by_host.items()}
    if not any(each["gpus"] for each in by_host.values()):
        checks = [Check(name="GPUs", found=f"none on {_names(by_host)} (ranks run on the CPUs with gloo)")]
    elif len(set(gpus.values())) == 1:
        checks = [Check(name="GPUs", found=_grouped(gpus))]
    else:
        meaning = "Not alike: the slowest GPU sets the pace of all, and NCCL needs one on every host."
        cure = "Use hosts that are alike, or backend='gloo'."
        checks = [Check(name="GPUs", found=_grouped(gpus), status="note", meaning=meaning, cure=cure)]
    said = {host: _cores_of(each) for host, each in by_host.items()}
    rooms = {host: int(each["free_bytes"] / 1e9 / RANK_GB) for host, each in by_host.items()}
    short = [host for host, room in rooms.items() if room < 2]
    if not short:
        return [*checks, Check(name="cores and memory", found=_grouped(said))]
    status: Status = "problem" if any(rooms[host] < 1 for host in short) else "note"
    meaning = f"A rank takes about {RANK_GB} GB with what it computes: there is room for fewer than two on "
    meaning += f"{_names(short)}."
    cure = "End what else runs there, or use fewer ranks per host."
    return [
        *checks,
        Check(name="cores and memory", found=_grouped(said), status=status, meaning=meaning, cure=cure),
    ]


def _gpus_of(gpus: Sequence[tuple[str, int]]) -> str:
    kinds = [f"{name} {memory / 1e9:.0f} GB" for name, memory in gpus]
    return ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds)) or "none"


def _cores_of(each: Mapping[str, Any]) -> str:
    cores = f"{each['cores']} core{'s' * (each['cores'] != 1)}"
    where = "" if each["where"] == "this machine" else f" ({each['where']})"
    return f"{cores}, {each['free_bytes'] / 1e9:.1f} GB free{where}"


def limits(by_host: Mapping[str, Mapping[str, int]], devices: Mapping[str, Sequence[str]]) -> list[Check]:
    """Open files, and locked memory where there is RDMA that needs it."""
    files = {host: _limit(each["files"]) for host, each in by_host.items()}
    few = [host for host, each in by_host.items() if 0 <= each["files"] < _FILES]
    checks = []
    if few:
        meaning = "A rank of many opens a connection to each other one, and fails where there are no more on "
        meaning += f"{_names(few)}."
        cure = "Start the engines after ulimit -n 65536."
        checks.append(
            Check(name="open files", found=f"at most {_grouped(files)}", status="note", meaning=meaning, cure=cure)
        )
    else:
        checks.append(Check(name="open files", found=f"at most {_grouped(files)}"))
    low = {
        host: f"{each['locked'] // 1024} KiB"
        for host, each in by_host.items()
        if devices.get(host) and 0 <= each["locked"] < _LOCKED_BYTES
    }
    if low:
        checks.append(
            Check(
                name="locked memory",
                found=f"at most {_grouped(low)}",
                status="problem",
                meaning="InfiniBand and RoCE need memory that stays in place, and NCCL fails to register it.",
                cure="Start the engines after ulimit -l unlimited (Slurm: PropagateResourceLimitsExcept=MEMLOCK).",
            )
        )
    return checks


def _limit(most: int) -> str:
    return "as many as wanted" if most < 0 else f"{most:,}"


def scheduler(by_host: Mapping[str, Mapping[str, str]]) -> Check:
    """The batch system that started the engines."""
    said = {
        host: ", ".join(f"{SCHEDULERS[name]} {value}" for name, value in each.items()) or "none"
        for host, each in by_host.items()
    }
    if len(set(said.values())) == 1:
        return Check(name="batch system", found=_grouped(said))
    return Check(
        name="batch system",
        found=_grouped(said),
        status="note",
        meaning="The engines were not all started by the same job: they end at different times.",
        cure="If that is not meant, start all engines in one job.",
    )


def folder(name: str, writer: str, seen: Mapping[str, bool]) -> Check:
    """Whether a file that one host wrote is there on the others."""
    missing = [host for host, same in seen.items() if not same]
    if not missing:
        return Check(name="shared folder", found=f"{name} is the same on {_names([writer, *seen])}")
    return Check(
        name="shared folder",
        found=f"{name} of {writer} is not that of {_names(missing)}",
        status="note",
        meaning="What a rank writes stays on its host, and what ranks read must lie on each.",
        cure="Work in a folder of a file system that all hosts mount, or copy checkpoints to every host.",
    )


def no_answer(who: str, what: str, error: str) -> Check:
    """A host, or an engine of nobody knows which, that did not say something."""
    return Check(
        name=who,
        found=f"no answer ({what})",
        status="problem",
        meaning=f"{who[0].upper()}{who[1:]}: {error}.",
        cure="Its engine is stopped, busy with a call of somebody's (it does one at a time) or cut off, or large "
        "packets are lost on the way (MTU): look at it there, or start it anew.",
    )


def _grouped(values: Mapping[str, str]) -> str:
    """``2.13 on alpha and beta; 2.11 on gamma``."""
    hosts: dict[str, list[str]] = {}
    for host, value in values.items():
        hosts.setdefault(value, []).append(host)
    return "; ".join(f"{value} on {_names(each)}" for value, each in hosts.items())


def _names(hosts: Any) -> str:
    """``alpha, beta and gamma``."""
    *most, last = hosts
    return f"{listed(most, 8)} and {last}" if most else str(last)
