#!/usr/bin/env python3
"""Transfers between accounts, by processes that are killed in the middle: no money comes or goes.

    python examples/bank.py
    python examples/bank.py --workers 8 --accounts 20 --kills 100

A transfer locks both accounts; at the end of the block both new balances are stored, or neither. So
at any moment, a process that locks all accounts finds all the money. Exit status: 0 if the sum was
right each time, else 1.
"""

import argparse
import multiprocessing
import random
import sys
import time

from shmrhash import SharedDict

START = 1000


class Bank:
    """Accounts are {"balance", "payments"}."""

    def __init__(self, accounts):
        self.accounts = SharedDict(key=int, value=object, max_entries=100_000)
        for account in range(accounts):
            self.accounts[account] = {"balance": START, "payments": 0}

    def pay(self, payer, payee, amount):
        """Transfer an amount; False if the payer does not have it."""
        with self.accounts.locked_many([payer, payee]) as (source, target):
            if source.value["balance"] < amount:
                return False
            source.value["balance"] -= amount
            source.value["payments"] += 1
            target.value["balance"] += amount
        return True

    def total(self):
        """The sum of all balances, at one moment between payments."""
        with self.accounts.locked_many(list(self.accounts)) as accounts:
            return sum(account.value["balance"] for account in accounts)


def work(bank, seed):
    rng = random.Random(seed)
    accounts = list(bank.accounts)
    while True:
        bank.pay(*rng.sample(accounts, 2), rng.randrange(1, 100))


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workers", type=int, default=4, help="(%(default)s)")
    parser.add_argument("--accounts", type=int, default=10, help="(%(default)s)")
    parser.add_argument("--kills", type=int, default=30, help="(%(default)s)")
    parser.add_argument(
        "--start-method", choices=multiprocessing.get_all_start_methods(), help="of the workers"
    )
    options = parser.parse_args(arguments)
    context = multiprocessing.get_context(options.start_method)
    bank = Bank(options.accounts)

    def start(seed):
        worker = context.Process(target=work, args=(bank, seed))
        worker.start()
        return worker

    workers = [start(seed) for seed in range(options.workers)]
    totals = []
    for turn in range(options.kills):
        time.sleep(0.02 * random.random())
        victim = workers.pop(0)
        victim.kill()
        victim.join()
        workers.append(start(options.workers + turn))
        totals.append(bank.total())
    for worker in workers:
        worker.kill()
        worker.join()
    totals.append(bank.total())

    expected = START * options.accounts
    wrong = sum(total != expected for total in totals)
    payments = sum(account["payments"] for account in bank.accounts.values())
    print(f"{payments:,} payments, {options.kills + options.workers} processes killed")
    print(f"the sum was {totals[-1]:,} of {expected:,} at the end, and wrong {wrong} times")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
