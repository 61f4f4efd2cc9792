"""A bank: processes move money between accounts, and are killed at random (C1, L1).

A transfer is a locked_many of two accounts, stored one after the other. If its process (a teller)
is killed between the two stores, the transfer is half done, as locked_many documents. The journal
is in the map: the value of an account has its balance, the number of its transfers, the number of
each teller's last transfer here, and a checksum.

After each kill the two accounts say which half of the teller's last transfer was stored; its
ledger, in memory that outlives the teller, has the earlier transfers. At the end every account is
exactly what the ledgers say.
"""

import mmap
import random
import struct
import time

import pytest
from support.children import Child, kill

from shmrhash import RHashMap

ACCOUNTS = 1000
BUSY_ACCOUNTS = 8  # half of the transfers are among these
TELLERS = 8
OPENING = 1_000_000
FORMAT = f"<qQ{TELLERS}QQ"  # balance, transfers seen, each teller's last one, sum
VALUE_SIZE = struct.calcsize(FORMAT)
MASK = (1 << 64) - 1
PAUSE_SECONDS = 0.001
START_SECONDS_MAX = 20

# A teller's ledger, in words: its current transfer, the values that the ledger's entries of the two
# accounts get by it, and then an entry for each account: number of transfers, sum of money. SENDER
# is stored last, and is -1 when both entries are made. Making an entry twice is harmless.
SENDER, RECEIVER, AMOUNT, NUMBER, BETWEEN, BECOMES = range(6)
FIRST = BECOMES + 4
LEDGER_WORDS = FIRST + 2 * ACCOUNTS


def word(number):
    return struct.pack(">Q", number)  # sorts as the numbers do


def packed(balance, seen, last):
    total = (balance + seen + sum(last)) & MASK
    return struct.pack(FORMAT, balance, seen, *last, total)


def unpacked(value):
    """R2: unpack an account and assert that it is whole."""
    balance, seen, *last, total = struct.unpack(FORMAT, value)
    assert total == (balance + seen + sum(last)) & MASK, "an account is not whole"
    return balance, seen, last


def enter(ledger, side):
    """Make the prepared entry for the sender (side 0) or the receiver (side 1)."""
    account = ledger[SENDER + side]
    for offset in range(2):
        ledger[FIRST + 2 * account + offset] = ledger[BECOMES + 2 * side + offset]


class Pause:
    """Stands between two sections of a locked_many, and sometimes sleeps there: the first section
    is stored and the second is not, for long enough that some kills fall into this time."""

    def __init__(self, ledger, rng):
        self.ledger = ledger
        self.rng = rng

    def __exit__(self, *_):
        self.ledger[BETWEEN] = 1
        if self.rng.random() < 0.2:
            time.sleep(PAUSE_SECONDS)
        self.ledger[BETWEEN] = 0


class Bank:
    """The map, the ledgers, and the tellers."""

    def __init__(self, shared_map, seed):
        self.map = shared_map
        self.rng = random.Random(seed)
        self.memory = mmap.mmap(-1, TELLERS * LEDGER_WORDS * 8)
        words = memoryview(self.memory).cast("q")
        self.ledgers = [words[n * LEDGER_WORDS : (n + 1) * LEDGER_WORDS] for n in range(TELLERS)]
        self.children = {}
        self.kills = self.half_done = self.between = 0
        for ledger in self.ledgers:
            ledger[SENDER] = -1
        for number in range(ACCOUNTS):
            shared_map[word(number)] = packed(OPENING, 0, [0] * TELLERS)

    # ---- a teller ----

    def work(self, teller, seed):
        ledger, rng = self.ledgers[teller], random.Random(seed)
        while True:
            among = BUSY_ACCOUNTS if rng.random() < 0.5 else ACCOUNTS
            sender, receiver = rng.sample(range(among), 2)
            self.prepare(ledger, sender, receiver, rng.randrange(1, 1000))
            self.transfer(teller, rng)
            enter(ledger, 0)
            enter(ledger, 1)
            ledger[SENDER] = -1

    def prepare(self, ledger, sender, receiver, amount):
        ledger[NUMBER] += 1
        ledger[RECEIVER], ledger[AMOUNT] = receiver, amount
        for side, account, money in ((0, sender, -amount), (1, receiver, amount)):
            count, sum_before = ledger[FIRST + 2 * account], ledger[FIRST + 2 * account + 1]
            ledger[BECOMES + 2 * side] = count + 1
            ledger[BECOMES + 2 * side + 1] = sum_before + money
        ledger[SENDER] = sender

    def transfer(self, teller, rng):
        ledger = self.ledgers[teller]
        keys = word(ledger[SENDER]), word(ledger[RECEIVER])
        both = self.map.locked_many(keys)
        with both as values:
            first, second = both._sections.items()
            both._sections = dict([first, (None, Pause(ledger, rng)), second])
            for value, money in zip(values, (-ledger[AMOUNT], ledger[AMOUNT]), strict=True):
                balance, seen, last = unpacked(bytes(value))
                last[teller] = ledger[NUMBER]
                value[:] = packed(balance + money, seen + 1, last)

    # ---- the manager ----

    def start(self, teller):
        self.children[teller] = Child(self.work, teller, self.rng.getrandbits(32))

    def kill(self, teller):
        kill(self.children.pop(teller))
        self.kills += 1
        self.settle(teller)

    def settle(self, teller):
        """C1: enter the part of a dead teller's last transfer that is stored, which is final."""
        ledger = self.ledgers[teller]
        if ledger[SENDER] < 0:
            return  # nothing was under way
        stored = []
        for side in range(2):
            account = ledger[SENDER + side]
            _, _, last = unpacked(self.map[word(account)])
            if last[teller] == ledger[NUMBER]:
                enter(ledger, side)
                stored.append(account)
        if len(stored) == 1:
            self.half_done += 1
            assert stored == [min(ledger[SENDER], ledger[RECEIVER])], "the second was stored first"
        if ledger[BETWEEN]:
            assert len(stored) == 1, "killed between two stores, but it is not half done"
            self.between += 1
        ledger[SENDER], ledger[BETWEEN] = -1, 0

    def rage(self, kills_wanted, seconds):
        """Kill tellers and start others in their places."""
        began = time.monotonic()
        for teller in range(TELLERS):
            self.start(teller)
        while self.kills < kills_wanted or time.monotonic() < began + seconds:
            time.sleep(self.rng.uniform(0, 0.02))
            teller = self.rng.randrange(TELLERS)
            self.kill(teller)
            self.start(teller)
        for teller in range(TELLERS):
            self.kill(teller)

    def end(self):
        """Kill the remaining tellers without settling their transfers."""
        for child in self.children.values():
            child.kill()

    def transfers(self):
        return sum(ledger[NUMBER] for ledger in self.ledgers)

    def audit(self):
        """Assert that each account is what the ledgers say; return the money that is missing."""
        missing = 0
        for account in range(ACCOUNTS):
            balance, seen, _ = unpacked(self.map[word(account)])
            at = FIRST + 2 * account
            assert seen == sum(ledger[at] for ledger in self.ledgers), f"account {account}"
            money = sum(ledger[at + 1] for ledger in self.ledgers)
            assert balance == OPENING + money, f"account {account}"
            missing -= money
        return missing


def run_the_bank(make_map, seed, kills_wanted, seconds):
    m = make_map(value_size=VALUE_SIZE, max_entries=ACCOUNTS, timeout=START_SECONDS_MAX)
    bank = Bank(m, seed)
    try:
        bank.rage(kills_wanted, seconds)
    finally:
        bank.end()

    missing = bank.audit()

    print(
        f"seed {seed}: {bank.kills} kills, {bank.transfers()} transfers begun, {bank.half_done} "
        f"half done ({bank.between} of them killed while it paused), money missing {missing}, "
        f"recovered {m.info()['recoveries']}"
    )
    with m.locked_many([word(number) for number in range(ACCOUNTS)], timeout=1) as values:
        assert len(values) == ACCOUNTS
    assert missing == bank.audit()
    with RHashMap.open(m.name):
        pass
    assert m.info()["processes"] == 1
    assert m.check()["exact"]
    assert bank.between > 0
    assert bank.transfers() > 10 * bank.kills


@pytest.mark.thorough
def test_money_is_missing_only_where_a_teller_died_between_two_stores(make_map, seed):
    """C1, L1, R2: 200 kills; each account is whole, and no lock is left behind."""
    run_the_bank(make_map, seed, 200, 3)


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_money_is_missing_only_where_tellers_died_in_a_long_run(make_map, seed, duration):
    """C1, L1, R2: the test above for ten times --duration seconds."""
    run_the_bank(make_map, seed, 200, 10 * duration)
