"""Arguments: numbers that are whole, modes that are permissions, times to live."""

import math
from collections.abc import Iterable
from operator import index
from typing import Any

from shmrhash._errors import InvalidArgument

_MODE_MAX = 0o777
NEVER_NS = (1 << 63) - 1  # the deadline of an entry that never expires by request (ttl=inf)
_TTL_MAX = 1 << 33  # seconds, 272 years: a deadline fits into 63 bits of nanoseconds


def whole_number(name: str, given: Any) -> int:
    """The argument given as an int. Raises TypeError, which names the argument."""
    try:
        return index(given)
    except TypeError:
        hint = ""
        if isinstance(given, float) and given.is_integer():
            hint = f"; write {int(given)}"
        elif isinstance(given, str):
            hint = "; write 0o660" if name == "mode" else "; write a number, such as 1 << 30"
        raise TypeError(
            f"{name} must be an int, not {type(given).__name__} {given!r:.40}{hint}"
        ) from None


def checked_mode(mode: Any) -> int:
    """Permissions of a file. Raises TypeError, InvalidArgument."""
    number = whole_number("mode", mode)
    if 0 <= number <= _MODE_MAX:
        return number
    hint = ""
    if set(str(number)) <= set("01234567") and int(str(number), 8) <= _MODE_MAX:
        hint = f"; did you mean 0o{number}?"
    raise InvalidArgument(f"mode must be from 0 to 0o777, not {number} ({number:#o}){hint}")


def checked_value_bytes(most: Any) -> int | None:
    """max_value_bytes of a cache, or None. Raises TypeError, InvalidArgument."""
    if most is None:
        return None
    number = whole_number("max_value_bytes", most)
    if number < 1:
        raise InvalidArgument(f"max_value_bytes must be at least 1, not {number}")
    return number


def checked_ttl(ttl: Any) -> float:
    """Seconds to live. Raises TypeError, InvalidArgument."""
    if isinstance(ttl, bool) or not isinstance(ttl, (int, float)):
        raise TypeError(f"ttl must be seconds, int or float, not {type(ttl).__name__}")
    if not 0 < ttl <= _TTL_MAX and ttl != math.inf:
        raise InvalidArgument(
            f"ttl must be above 0 and at most {_TTL_MAX} seconds, or inf, not {ttl}"
        )
    return ttl


def ttl_ns(ttl: float | None) -> int:
    """A time to live in nanoseconds, at least 1; 0 for None and inf, which give no deadline."""
    return 0 if ttl is None or ttl == math.inf else max(1, round(ttl * 1e9))


def expect_staleness(stale: float, early: float) -> None:
    """Raise InvalidArgument unless these are numbers for Cache.get_or_compute()."""
    for name, number, most in (("stale", stale, _TTL_MAX), ("early", early, 1e6)):
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise InvalidArgument(f"{name} must be a number, not {number!r:.60}")
        if not 0 <= number <= most:
            raise InvalidArgument(f"{name} must be between 0 and {most}, not {number}")


def expect_when_late(when_late: str) -> None:
    """Raise InvalidArgument unless when_late is one that get_or_compute() knows."""
    if when_late not in ("compute", "raise"):
        raise InvalidArgument(f"when_late must be 'compute' or 'raise', not {when_late!r}")


def tag_names(tags: Iterable[str]) -> tuple[str, ...]:
    """Tags of a cache's entry, which the core looks at one by one. Raises TypeError."""
    if isinstance(tags, str):
        raise TypeError("tags are a tuple or list of str, such as ('user:1',), not a str")
    return tuple(tags)
