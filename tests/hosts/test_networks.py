"""Which interface each host uses: pure, over tables of interfaces as real hosts have them."""

import pytest

from tplab.checks import ArgumentError
from tplab.cluster.hosts.networks import Address, Interface, Network, Unreachable, choose, interfaces, look


def card(name: str, *addresses: str, up: bool = True) -> Interface:
    """An interface in networks of 24 bits."""
    return Interface(
        name=name,
        addresses=addresses,
        networks=tuple(f"{each.rpartition('.')[0]}.0/24" if "." in each else f"{each}/64" for each in addresses),
        up=up,
        loopback=name == "lo",
        mtu=1500,
        speed_mbit=None,
    )


LO = card("lo", "127.0.0.1")
DOCKER = card("docker0", "172.17.0.1")


def host(*cards: Interface, address: str = "", asked: str = "", default: str = "") -> Network:
    return Network(interfaces=(LO, *cards), address=address, asked=asked, default=default)


def test_the_interface_that_reaches_the_controller_is_chosen() -> None:
    hosts = {
        "alpha": host(DOCKER, card("eth0", "192.168.1.1"), card("ib0", "10.0.0.1"), address="10.0.0.1"),
        "beta": host(card("eth0", "192.168.1.2"), card("ib7", "10.0.0.2"), address="10.0.0.2", default="192.168.1.2"),
    }
    assert choose(hosts) == {"alpha": Address("ib0", "10.0.0.1"), "beta": Address("ib7", "10.0.0.2")}


def test_the_controllers_own_host_takes_the_network_of_the_others() -> None:
    """Its engine reaches the controller over loopback, so that it does not say by which interface."""
    hosts = {
        "alpha": host(DOCKER, card("eth0", "192.168.1.1"), card("eth1", "10.0.0.1"), default="192.168.1.1"),
        "beta": host(card("eth0", "10.0.0.2"), address="10.0.0.2"),
    }
    assert choose(hosts)["alpha"] == Address("eth1", "10.0.0.1")


def test_without_any_hint_the_way_outside_is_taken_and_no_bridge() -> None:
    hosts = {
        "alpha": host(DOCKER, card("eth0", "192.168.1.1"), card("eth1", "10.0.0.1"), default="10.0.0.1"),
        "beta": host(DOCKER, card("eth0", "192.168.1.2")),
    }
    assert choose(hosts) == {"alpha": Address("eth1", "10.0.0.1"), "beta": Address("eth0", "192.168.1.2")}


def test_a_bridge_over_which_the_controller_is_reached_serves_hosts_that_live_behind_it() -> None:
    hosts = {
        "alpha": host(DOCKER, card("eth0", "192.168.1.1"), address="172.17.0.1", default="192.168.1.1"),
        "box": host(card("eth0", "172.17.0.2"), address="172.17.0.2"),
    }
    assert choose(hosts)["alpha"] == Address("docker0", "172.17.0.1")


def test_what_is_asked_for_comes_first_and_the_environment_second() -> None:
    both = (card("eth0", "192.168.1.1"), card("eth1", "10.0.0.1", "10.0.5.1"))
    hosts = {"alpha": host(*both, asked="eth0", address="10.0.0.1"), "beta": host(*both, address="10.0.0.1")}
    assert choose(hosts)["alpha"].interface == "eth0"
    assert choose(hosts, "eth1") == dict.fromkeys(hosts, Address("eth1", "10.0.0.1"))  # gloo takes the first address
    assert choose(hosts, {"beta": "eth0"}) == dict.fromkeys(hosts, Address("eth0", "192.168.1.1"))


def test_an_interface_that_cannot_serve_is_refused_by_the_name_of_the_host() -> None:
    hosts = {"alpha": host(card("eth0", "10.0.0.1")), "beta": host(card("ens3", "10.0.0.2"), card("eth0", up=False))}
    with pytest.raises(ArgumentError, match=r"interface must be an interface of every host .* beta has ens3 \(10.0.0."):
        choose(hosts, "eth0")
    with pytest.raises(ArgumentError, match="alpha has eth0"):
        choose(hosts, "lo")
    with pytest.raises(ArgumentError, match="GLOO_SOCKET_IFNAME of gamma asks"):
        choose({**hosts, "gamma": host(card("eth0", "10.0.0.3"), asked="ib0")})
    with pytest.raises(ArgumentError, match="must name hosts of the cluster, which are alpha, beta"):
        choose(hosts, {"betta": "eth0"})


def test_a_host_that_nobody_can_reach_is_named() -> None:
    hosts = {"alpha": host(card("eth0", "10.0.0.1")), "beta": host(card("eth0", "fe80::1"), card("eth1", up=False))}
    with pytest.raises(Unreachable, match="host beta has no network interface but loopback"):
        choose(hosts)


def test_one_host_alone_uses_loopback() -> None:
    assert choose({"alpha": host(card("eth0", "10.0.0.1"), address="10.0.0.1")}) == {
        "alpha": Address("lo", "127.0.0.1")
    }


def test_this_machine_has_a_loopback_interface_with_its_network() -> None:
    [back] = [each for each in interfaces() if each.loopback]
    assert back.networks[back.addresses.index("127.0.0.1")] == "127.0.0.0/8"
    assert back.up
    assert not back.usable
    assert look().interfaces == tuple(interfaces())
