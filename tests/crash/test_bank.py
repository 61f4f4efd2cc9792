"""A bank: processes move money between accounts, and are killed at random (C1, L1).

A transfer is a locked_many of two accounts, which ends in one step (L2). An account's value has its
balance, the number of its transfers, the number of each teller's last transfer here, and a
checksum. A teller is a process; its ledger is in memory that outlives it.

After each kill the two accounts say whether the teller's last transfer was stored: in both or in
neither. A transfer has two busy accounts, or two of the others, so a process that locks all busy
accounts finds all of their money at any time. At the end every account is exactly what the ledgers
say.
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
START_SECONDS_MAX = 20

# A teller's ledger, in words: its current transfer, the values that the ledger's entries of the two
# accounts get by it, and then an entry for each account: number of transfers, sum of money. SENDER
# is stored last, and is -1 when both entries are made. Making an entry twice is harmless.
SENDER, RECEIVER, AMOUNT, NUMBER, BECOMES = range(5)
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


class Bank:
    """The map, the ledgers, and the tellers."""

    def __init__(self, shared_map, seed):
        self.map = shared_map
        self.rng = random.Random(seed)
        self.memory = mmap.mmap(-1, TELLERS * LEDGER_WORDS * 8)
        words = memoryview(self.memory).cast("q")
        self.ledgers = [words[n * LEDGER_WORDS : (n + 1) * LEDGER_WORDS] for n in range(TELLERS)]
        self.children = {}
        self.kills = self.undone = self.done = 0
        for ledger in self.ledgers:
            ledger[SENDER] = -1
        for number in range(ACCOUNTS):
            shared_map[word(number)] = packed(OPENING, 0, [0] * TELLERS)

    # ---- a teller ----

    def work(self, teller, seed):
        ledger, rng = self.ledgers[teller], random.Random(seed)
        while True:
            among = range(BUSY_ACCOUNTS)
            if rng.random() < 0.5:
                among = range(BUSY_ACCOUNTS, ACCOUNTS)
            self.prepare(ledger, *rng.sample(among, 2), rng.randrange(1, 1000))
            self.transfer(teller)
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

    def transfer(self, teller):
        ledger = self.ledgers[teller]
        keys = word(ledger[SENDER]), word(ledger[RECEIVER])
        with self.map.locked_many(keys) as values:
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
        """L2: a dead teller's last transfer is stored in both accounts or in neither."""
        ledger = self.ledgers[teller]
        if ledger[SENDER] < 0:
            return  # nothing was under way
        keys = word(ledger[SENDER]), word(ledger[RECEIVER])
        with self.map.locked_many(keys) as values:
            stored = [unpacked(bytes(value))[2][teller] == ledger[NUMBER] for value in values]
        assert stored in ([False, False], [True, True]), "a transfer is half done"
        if stored[0]:
            enter(ledger, 0)
            enter(ledger, 1)
        self.done += stored[0]
        self.undone += not stored[0]
        ledger[SENDER] = -1

    def expect_busy_money(self):
        """L2: a process that locks all busy accounts finds all of their money."""
        keys = [word(number) for number in range(BUSY_ACCOUNTS)]
        with self.map.locked_many(keys) as values:
            balances = [unpacked(bytes(value))[0] for value in values]
            for value in values:
                value.roll_back()
        assert sum(balances) == OPENING * BUSY_ACCOUNTS, balances

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
            self.expect_busy_money()
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
        f"seed {seed}: {bank.kills} kills, {bank.transfers()} transfers begun; of those that were "
        f"under way {bank.done} were stored and {bank.undone} not; recovered "
        f"{m.info()['recoveries']}"
    )
    with m.locked_many([word(number) for number in range(ACCOUNTS)], timeout=1) as values:
        assert len(values) == ACCOUNTS
    assert missing == bank.audit() == 0
    with RHashMap.open(m.name):
        pass
    assert m.info()["processes"] == 1
    assert m.check()["exact"]
    assert bank.done > 0
    assert bank.undone > 0
    assert bank.transfers() > 10 * bank.kills


@pytest.mark.thorough
def test_no_transfer_of_a_killed_teller_is_half_done(make_map, seed):
    """C1, L1, L2, R2: 200 kills; each account is whole, and no lock is left behind."""
    run_the_bank(make_map, seed, 200, 3)


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_no_transfer_of_killed_tellers_is_half_done_in_a_long_run(make_map, seed, duration):
    """C1, L1, L2, R2: the test above for ten times --duration seconds."""
    run_the_bank(make_map, seed, 200, 10 * duration)
