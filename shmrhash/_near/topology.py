"""What the nodes of a cluster say of it: which primary owns which slots.

A View is one node's answer to CLUSTER NODES. Nodes learn of a change one after the other, so two
views may differ; clusterwatch.py compares them. CLUSTER SLOTS, by which keys are routed, is here
too.
"""

from __future__ import annotations

from binascii import crc_hqx
from collections.abc import Iterator
from typing import Any, NamedTuple

SLOTS = 1 << 14
Address = tuple[str, int]
Ranges = tuple[tuple[int, int], ...]  # first and last slot, in order


def slot_of(key: bytes) -> int:
    """The slot of a key: of the part in braces, if it has one."""
    begin = key.find(b"{")
    if begin >= 0:
        end = key.find(b"}", begin + 1)
        if end > begin + 1:
            key = key[begin + 1 : end]
    return crc_hqx(key, 0) & (SLOTS - 1)


class Member(NamedTuple):
    """A node, as one node sees it."""

    id: bytes
    address: Address
    name: str  # that it announces; "": none
    primary: bool
    failed: bool  # it has no address, or others say that it does not answer
    epoch: int  # of its configuration: rises with each failover, and most moves of slots
    slots: Ranges
    leaving: frozenset[bytes]  # "slot->id" of what is on its way to another node; known to itself


class View(NamedTuple):
    """A cluster, as one of its nodes sees it."""

    me: Member
    members: dict[bytes, Member]

    def primaries(self) -> Iterator[Member]:
        """Those that own slots, and those that slots can come to."""
        for member in self.members.values():
            if member.primary and (member.slots or not member.failed):
                yield member

    def owners(self) -> int:
        """How many nodes own slots: those that vote in a failover."""
        return sum(bool(member.slots) for member in self.members.values() if member.primary)

    def agrees(self, node: bytes, slots: Ranges) -> bool:
        """Whether the node owns these slots, and no others."""
        member = self.members.get(node)
        return member is not None and member.primary and member.slots == slots

    def contradicts(self, node: bytes, slots: Ranges) -> bool:
        """Whether another node owns one of these slots. A node that has joined a moment ago knows
        of no owner, and contradicts nobody."""
        return any(
            other.id != node and other.slots and _meet(other.slots, slots)
            for other in self.members.values()
        )


def _meet(one: Ranges, other: Ranges) -> bool:
    return any(first <= last2 and first2 <= last for first, last in one for first2, last2 in other)


def _ranges(words: list[bytes]) -> Ranges:
    found = []
    for word in words:
        if not word.startswith(b"["):
            first, _, last = word.partition(b"-")
            found.append((int(first), int(last or first)))
    return tuple(sorted(found))


def _member(line: bytes, asked: Address) -> Member:
    words = line.split()
    ident, place, flags, epoch = words[0], words[1], words[2].split(b","), words[6]
    at, _, more = place.partition(b",")  # ip:port@bus,name,key=value
    host, _, port = at.partition(b"@")[0].rpartition(b":")
    name = more.partition(b",")[0].decode()
    return Member(
        ident,
        (host.decode() or asked[0], int(port)),
        "" if "=" in name else name,
        b"master" in flags,
        not {b"fail", b"noaddr", b"handshake"}.isdisjoint(flags),
        int(epoch),
        _ranges(words[8:]),
        frozenset(word for word in words[8:] if b"->-" in word),
    )


def parsed_nodes(answer: bytes, asked: Address) -> View:
    """The view of the node that was asked, from its answer to CLUSTER NODES.

    Raises ValueError, IndexError, LookupError: this is no such answer.
    """
    text = answer.removeprefix(b"txt:")  # RESP3 says that it is a text
    members = {}
    me = None
    for line in text.splitlines():
        if not line.strip():
            continue
        member = _member(line, asked)
        members[member.id] = member
        if b"myself" in line.split()[2].split(b","):
            me = member
    if me is None:
        raise LookupError("no node says that it is this one")
    return View(me, members)


def parsed_slots(answer: list[Any], asked: Address) -> Iterator[tuple[int, int, Address, bytes]]:
    """First slot, last slot, address and id of their primary, from CLUSTER SLOTS.

    Raises ValueError, IndexError, TypeError, AttributeError: this is no such answer.
    """
    for first, last, primary, *_ in answer:
        host = (primary[0] or b"").decode()
        yield int(first), int(last), (_known(host, asked), int(primary[1])), bytes(primary[2])


def _known(host: str, asked: Address) -> str:
    """A host; that of the node which was asked where it does not know its own."""
    return host if host and host != "?" else asked[0]


def redirected(error: str, asked: Address) -> tuple[bool, int, Address] | None:
    """Whether to ASK, the slot and the address of an error MOVED or ASK; None: another error."""
    words = error.split()
    if len(words) < 3 or words[0] not in ("MOVED", "ASK"):
        return None
    host, _, port = words[2].rpartition(":")
    return words[0] == "ASK", int(words[1]), (_known(host, asked), int(port))
