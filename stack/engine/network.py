"""The network of the engine's containers: a bridge, and one table of nftables that lets them reach what this machine reaches.

The engine itself changes no rules of the firewall (``--iptables=false``), so that these few can be removed exactly.
"""

from __future__ import annotations

import ipaddress
import json
from pathlib import Path
from typing import Any

from stack.engine.packages import call
from stack.processes import StackError

BRIDGE = "picas0"
TABLE = "picas_engine"
FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
POOLS = [ipaddress.IPv4Network(f"10.{number}.0.0/16") for number in range(128, 192)]
FIRST_SUBNET = 24
"""Prefix length of the network of each bridge; the first one of the pool is that of ``BRIDGE``."""


def create() -> ipaddress.IPv4Network:
    """Make the bridge and the table. Returns the pool of addresses that the containers may use."""
    pool = _unused_pool()
    address = next(next(pool.subnets(new_prefix=FIRST_SUBNET)).hosts())
    call(["ip", "link", "add", BRIDGE, "type", "bridge"])
    call(["ip", "address", "add", f"{address}/{FIRST_SUBNET}", "dev", BRIDGE])
    call(["ip", "link", "set", BRIDGE, "up"])
    call(["nft", "add", "table", "ip", TABLE])
    call(["nft", "add", "chain", "ip", TABLE, "outgoing", "{ type nat hook postrouting priority srcnat; }"])
    rule = f"ip saddr {pool} ip daddr != {pool} masquerade"
    call(["nft", "add", "rule", "ip", TABLE, "outgoing", *rule.split()])
    FORWARDING.write_text("1")
    return pool


def remove(forwarding: str | None) -> None:
    """Remove the table and all bridges in the pool that it names. ``forwarding`` is what the kernel's switch was before."""
    try:
        rules = call(["nft", "list", "table", "ip", TABLE])
    except StackError:  # there is no such table
        rules = ""
    pool = next((network for network in POOLS if str(network) in rules), None)
    for device in _devices():
        inside = pool is not None and any(address in pool for address in device["addresses"])
        if inside or device["name"] == BRIDGE:
            # A container's interface outlives a killed engine, for as long as its network has open connections.
            for port in json.loads(call(["ip", "-json", "link", "show", "master", device["name"]]) or "[]"):
                call(["ip", "link", "delete", port["ifname"]])
            call(["ip", "link", "delete", device["name"]])
    if rules:
        call(["nft", "delete", "table", "ip", TABLE])
    if forwarding is not None:
        FORWARDING.write_text(forwarding)


def _devices() -> list[dict[str, Any]]:
    """Names and IPv4 addresses of this machine's bridges."""
    listed = json.loads(call(["ip", "-json", "-4", "address", "show", "type", "bridge"]) or "[]")
    return [
        {
            "name": found["ifname"],
            "addresses": [ipaddress.IPv4Address(address["local"]) for address in found["addr_info"]],
        }
        for found in listed
        if found
    ]


def _unused_pool() -> ipaddress.IPv4Network:
    """The first pool that overlaps with no route of this machine."""
    routes = json.loads(call(["ip", "-json", "-4", "route"]) or "[]")
    known = [ipaddress.IPv4Network(route["dst"]) for route in routes if route["dst"] != "default"]
    for pool in POOLS:
        if not any(pool.overlaps(network) for network in known):
            return pool
    raise StackError(f"This machine has routes to all of {POOLS[0]} to {POOLS[-1]}: none is free for containers.")
