"""Could these operations on one key have happened one after another, in an order that their times
allow?

The keys of a map are independent registers, so each key has a history of its own: the call of each
operation and its result, with the times of both. A history is linearizable if there is an order in
which a register that performs one operation at a time gives these results, and in which each
operation comes after all that had returned when it began (Herlihy and Wing). The search is that of
Wing and Gong, with Lowe's memory of the configurations that led nowhere.

An operation that never returned (its process was killed) may have taken effect at any time after
its start, also after all other operations, or never.

The register holds ABSENT or a value; values are any hashable objects except None. SEMANTICS has the
effect of each operation on the register. This module knows nothing of shared memory or of maps.
"""

from typing import Any, NamedTuple

ABSENT = None

# The results of operations that return no value.
OK, EXISTS, MISSING = "ok", "KeyExists", "KeyNotFound"
FULL = "MapFull"


class Operation(NamedTuple):
    """One call: its process, name, arguments, result and times. end is None if it never
    returned."""

    process: Any
    name: str
    arguments: tuple
    result: Any
    start: int
    end: int | None

    @property
    def pending(self):
        return self.end is None


# ---- what the operations do: (value before, *arguments) -> (value after, result) ----


def lookup(value):
    return value, value


def contains(value):
    return value, value is not ABSENT


def update(_, new):
    return new, OK


def insert(value, new):
    return (new, OK) if value is ABSENT else (value, EXISTS)


def replace(value, new):
    return (value, MISSING) if value is ABSENT else (new, OK)


def delete(value):
    return ABSENT, MISSING if value is ABSENT else OK


def lookup_and_delete(value):
    return ABSENT, MISSING if value is ABSENT else value


def add(value, delta, initial=None):
    if value is ABSENT:
        if initial is None:
            return ABSENT, MISSING
        value = initial
    after = (value + delta + (1 << 63)) % (1 << 64) - (1 << 63)
    return after, after


def compare_and_swap(value, expected, new):
    """An absent key differs from every expected value except ABSENT."""
    return (new, True) if value == expected else (value, False)


def exchange(value, new):
    return (value, MISSING) if value is ABSENT else (new, value)


def setdefault(value, default):
    return (default, default) if value is ABSENT else (value, value)


def pop(value, *default):
    """As a dict's pop(): an absent key gives the default, if there is one."""
    if value is ABSENT and default:
        return ABSENT, default[0]
    return lookup_and_delete(value)


def locked(value, new):
    """A section under the key's lock that reads the whole value and writes a whole new one."""
    return (value, MISSING) if value is ABSENT else (new, value)


# ---- several keys in one step: the register holds a tuple of the values of all keys ----


def exchange_all(values, new):
    return new, values


def look_at_all(values):
    return values, values


def exchange_one(values, at, new):
    return (*values[:at], new, *values[at + 1 :]), values[at]


# ---- entries that expire: the register holds (value, number of the deadline) ----


def get(entry):
    return entry, ABSENT if entry is ABSENT else entry[0]


def store(_, new):
    return (new, new), OK


def store_new(entry, new):
    return ((new, new), OK) if entry is ABSENT else (entry, EXISTS)


def touch(entry, deadline):
    return (ABSENT, MISSING) if entry is ABSENT else ((entry[0], deadline), OK)


def remove(entry):
    return ABSENT, MISSING if entry is ABSENT else OK


def refused(entry):
    """A refusal for lack of room, which an update of a present key does not need (W2)."""
    return entry, FULL if entry is ABSENT else OK


def expire(entry, deadline):
    """The clock passes a deadline: an entry with this deadline goes; a renewed entry stays."""
    return ABSENT if entry is not ABSENT and entry[1] == deadline else entry, OK


SEMANTICS = {
    function.__name__: function
    for function in (
        lookup,
        contains,
        update,
        insert,
        replace,
        delete,
        lookup_and_delete,
        add,
        compare_and_swap,
        exchange,
        setdefault,
        pop,
        locked,
    )
}


SEMANTICS_OF_EXPIRING = {
    function.__name__: function
    for function in (get, store, store_new, touch, remove, refused, expire)
}
SEMANTICS_OF_SEVERAL = {
    function.__name__: function for function in (exchange_all, look_at_all, exchange_one)
}
ALL_SEMANTICS = SEMANTICS | SEMANTICS_OF_EXPIRING | SEMANTICS_OF_SEVERAL


def has_no_effect(operation):
    """Return whether the operation, by its name or result, changes nothing at any place in an
    order."""
    if operation.name in ("lookup", "contains", "get", "refused", "look_at_all"):
        return True
    if operation.pending:
        return False
    return operation.result in (EXISTS, MISSING) or (
        operation.name == "compare_and_swap" and operation.result is False
    )


# ---- the search ----


class Search:
    """The operations of one key, each with the operations that had returned when it began."""

    def __init__(self, history):
        self.order = sorted(history, key=lambda operation: operation.start)
        self.returned = 0  # has a bit for each operation that returned
        self.before = []  # for each operation, the bits of the operations that must come before it
        for number, operation in enumerate(self.order):
            if not operation.pending:
                self.returned |= 1 << number
            earlier = 0
            for other in range(number):
                if precedes(self.order[other], operation) or sets(self.order[other], operation):
                    earlier |= 1 << other
            self.before.append(earlier)

    def steps(self, done, value):
        """Return the possible next operations: (operations done, value after it, number)."""
        changes = []
        for number, operation in enumerate(self.order):
            if done >> number & 1 or self.before[number] & ~done:
                continue
            after, result = ALL_SEMANTICS[operation.name](value, *operation.arguments)
            if operation.pending:
                if after != value:
                    changes.append((done | 1 << number, after, number))
            elif result == operation.result:
                step = (done | 1 << number, after, number)
                if has_no_effect(operation):
                    # An order that explains the rest also does so with this operation before it.
                    return [step]
                changes.append(step)
        # Operations that returned come first, because a killed one seldom had an effect.
        changes.sort(key=lambda step: self.order[step[2]].pending)
        return changes

    def run(self, value):
        """Return the numbers of the operations in an order that explains all that returned, or
        None."""
        path = []
        tried = {(0, value)}
        branches = [iter(self.steps(0, value))]
        if not self.returned:
            return path
        while branches:
            step = next(branches[-1], None)
            if step is None:
                branches.pop()
                if path:
                    path.pop()
                continue
            done, after, number = step
            if (done, after) in tried:
                continue
            tried.add((done, after))
            path.append(number)
            if not self.returned & ~done:
                return path
            branches.append(iter(self.steps(done, after)))
        return None


def sets(one, other):
    """Return whether `other` is the clock passing the deadline that `one` set."""
    return other.name == "expire" != one.name and one.arguments == other.arguments


def precedes(one, other):
    """Return whether `one`, which began earlier, had returned when `other` began.

    Equal times leave the order open, unless one process performed both.
    """
    return one.end is not None and (one.end < other.start or one.process == other.process)


def linearization(history, initial=ABSENT):
    """Return the operations in an order that explains their results, or None if there is none.

    A pending operation is in the order only if an explanation needs it.
    """
    search = Search(history)
    path = search.run(initial)
    return None if path is None else [search.order[number] for number in path]


def is_linearizable(history, initial=ABSENT):
    return linearization(history, initial) is not None


# ---- the report of a history that is not linearizable ----


def known_at(history, time):
    """Return the history as it was known at that time: operations that return later are pending."""
    return [
        operation
        if not operation.pending and operation.end <= time
        else operation._replace(end=None, result=None)
        for operation in history
        if operation.start <= time
    ]


def essence(history, initial=ABSENT):
    """Return the shortest prefix of a history that no order explains, without operations it does
    not need.

    A linearizable history stays linearizable if it is cut short, or if operations without effect
    are left out; so the remaining history is wrong by itself. The last operation to return is the
    one that made it wrong.
    """
    if is_linearizable(history, initial):
        raise ValueError("this history is linearizable")
    ends = sorted(operation.end for operation in history if not operation.pending)
    left = next(
        beginning
        for beginning in (known_at(history, end) for end in ends)
        if not is_linearizable(beginning, initial)
    )
    for operation in list(left):
        fewer = [other for other in left if other is not operation]
        if has_no_effect(operation) and not is_linearizable(fewer, initial):
            left = fewer
    return left


def rendered(history, initial=ABSENT):
    """Return a table of the operations in the order of their starts, in microseconds since the
    first."""
    if not history:
        return "no operations"
    begin = min(operation.start for operation in history)
    last = max((operation.end for operation in history if not operation.pending), default=None)
    lines = [f"at first: {shown(initial)}"]
    for operation in sorted(history, key=lambda operation: operation.start):
        arguments = ", ".join(shown(argument) for argument in operation.arguments)
        start_us = (operation.start - begin) / 1000
        if operation.pending:
            end, result = "   never", "had not returned"
        else:
            end, result = f"{(operation.end - begin) / 1000:8.2f}", shown(operation.result)
        lines.append(
            f"{start_us:8.2f} to {end}  process {operation.process}: "
            f"{operation.name}({arguments}) -> {result}"
            f"{'   <- no order explains this' if operation.end == last is not None else ''}"
        )
    return "\n".join(lines)


def shown(thing):
    """Return a value or a result as the table shows it; large numbers are in base 16."""
    if thing is ABSENT:
        return "absent"
    if isinstance(thing, bool) or not isinstance(thing, int):
        return str(thing)
    return str(thing) if abs(thing) < 1000 else f"{thing:#x}"
