#!/usr/bin/env python3
"""Transfers between accounts, by processes that are killed in the middle: no money comes or goes.

    python examples/bank.py
    python examples/bank.py --workers 8 --accounts 20 --kills 100

An operation changes one key in one step, but a transfer changes two. So the step that takes the
money from the payer's account also notes there which payment is under way, and each payee's account
has the number of the last payment that arrived from each payer. Then any process can finish a
payment, even twice or late, and it counts once. Exit status: 0 if the sum is right at the end, else
1.
"""

import argparse
import multiprocessing
import random
import sys
import time

from shmrhash import SharedDict

START = 1000


class Bank:
    """Accounts are {"balance", "sending": (number, payee, amount) or None, "number", "had"}."""

    def __init__(self, accounts):
        self.accounts = SharedDict(key=int, value=object, max_entries=100_000)
        for account in range(accounts):
            self.accounts[account] = {
                "balance": START,
                "sending": None,
                "number": 0,  # of the last payment that began
                "had": {},  # {payer: number of the last payment that arrived}
            }

    def pay(self, payer, payee, amount):
        """Transfer an amount; False if the payer does not have it."""

        def begin(account):
            if account["sending"] is None and account["balance"] >= amount:
                account["balance"] -= amount
                account["number"] += 1
                account["sending"] = account["number"], payee, amount
                begin.number = account["number"]
            return account

        begin.number = None
        self.finish(payer)
        self.accounts.update_with(payer, begin)
        if begin.number is not None:
            self.finish(payer)
        return begin.number is not None

    def finish(self, payer):
        """Finish a payer's payment that is under way, if any; its process may have been killed."""
        sending = self.accounts[payer]["sending"]
        if sending is None:
            return
        number, payee, amount = sending

        def arrive(account):
            if account["had"].get(payer, 0) < number:
                account["balance"] += amount
                account["had"][payer] = number
            return account

        def end(account):
            if account["sending"] == sending:
                account["sending"] = None
            return account

        self.accounts.update_with(payee, arrive)
        self.accounts.update_with(payer, end)

    def total(self):
        """The sum of all balances; call it when no payments are made."""
        for account in list(self.accounts):
            self.finish(account)
        return sum(account["balance"] for account in self.accounts.values())


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
    for turn in range(options.kills):
        time.sleep(0.02 * random.random())
        victim = workers.pop(0)
        victim.kill()
        victim.join()
        workers.append(start(options.workers + turn))
    for worker in workers:
        worker.kill()
        worker.join()

    unfinished = sum(account["sending"] is not None for account in bank.accounts.values())
    total, expected = bank.total(), START * options.accounts
    payments = sum(account["number"] for account in bank.accounts.values())
    print(f"{payments:,} payments, {options.kills + options.workers} processes killed")
    print(f"{unfinished} payments were under way; the sum is {total:,} of {expected:,}")
    return 0 if total == expected else 1


if __name__ == "__main__":
    sys.exit(main())
