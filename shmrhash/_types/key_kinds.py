"""Keys of the standard library's types: an encoding for each, so that equal keys have equal bytes.

keys.py calls special_bytes() for keys that it does not encode itself, and special_key() for tags
that it does not know.

    r   a number equal to no float: numerator, denominator (Decimal, Fraction)
    c   complex: two floats                     u   UUID: 16 bytes
    P   path: its flavour, p or w, its text     R   range: length, start, step
    D   date: its ordinal                       T   timedelta: microseconds
    N   datetime without a zone: ISO 8601       A   with one: the same, of its UTC
    H   time without an offset: ISO 8601        I   with one: microseconds from midnight UTC
    O   timezone: its offset in microseconds
"""

from __future__ import annotations

import datetime
import decimal
import fractions
import numbers
import os
import pathlib
import struct
import uuid
from collections.abc import Callable
from typing import Any

from shmrhash._errors import SegmentCorrupt, TooLarge

DIGITS_MAX = 160_000  # of a decimal; with more digits it is longer than any key
_COMPLEX = struct.Struct("<dd")
_MICROSECOND = datetime.timedelta(microseconds=1)
_DAY_US = 86_400_000_000
_MINUTE_US = 60_000_000

Encode = Callable[[Any], bytes]


def special_bytes(key: Any, encode: Encode) -> bytes | None:
    """The bytes of a key of one of these types; None for another. Raises TypeError, TooLarge."""
    plain = _without_numpy(key)
    if plain is not key:
        return encode(plain)
    return _number_bytes(key, encode) or _time_bytes(key) or _thing_bytes(key, encode)


def refusal(key: Any, why: str) -> TypeError:
    """The exception for a key whose equality bytes cannot represent."""
    return TypeError(
        f"{type(key).__qualname__} cannot be a key: {why}; use a tuple of its parts, its "
        f"text, or a frozen dataclass"
    )


def _without_numpy(key: Any) -> Any:
    """NumPy's bool, datetime64 and timedelta64 as the equal bool, datetime or timedelta."""
    if type(key).__module__ != "numpy":
        return key
    kind = getattr(getattr(key, "dtype", None), "kind", "")
    if kind == "b":
        return bool(key)
    if kind in "Mm" and kind:
        exact = key.astype(f"{kind}8[us]")
        plain = exact.item()
        if exact == key and isinstance(plain, (datetime.datetime, datetime.timedelta)):
            return plain
        raise refusal(key, "it is not a whole number of microseconds that a datetime can have")
    return key


def _integer(number: int) -> bytes:
    return number.to_bytes(number.bit_length() // 8 + 1, "little", signed=True)


def _number_bytes(key: Any, encode: Encode) -> bytes | None:
    if isinstance(key, decimal.Decimal):
        if key.is_nan():
            raise refusal(key, "it is not a number, and equals nothing")
        if len(key.as_tuple().digits) + abs(int(key.as_tuple().exponent)) > DIGITS_MAX:
            raise TooLarge(f"a decimal with an exponent of {key.adjusted()} is too long for a key")
    if isinstance(key, (decimal.Decimal, fractions.Fraction)):
        ratio = fractions.Fraction(key)
        return b"r" + encode((ratio.numerator, ratio.denominator))
    if isinstance(key, numbers.Complex) and complex(key) == key:
        plain = complex(key)
        return b"c" + _COMPLEX.pack(plain.real + 0.0, plain.imag + 0.0)
    return None


def _time_bytes(key: Any) -> bytes | None:
    kinds = (datetime.date, datetime.time, datetime.timedelta, datetime.timezone)
    if not isinstance(key, kinds):
        return None
    if key != key or any(getattr(key, name, None) for name in ("nanosecond", "nanoseconds")):
        raise refusal(key, "it is not a time, or has nanoseconds, which a datetime cannot have")
    if isinstance(key, datetime.datetime):
        tag, zone = b"N", key.utcoffset()
        if zone is not None:
            tag, key = b"A", key.astimezone(datetime.timezone.utc)
        parts = key.year, key.month, key.day, key.hour, key.minute, key.second, key.microsecond
        return tag + datetime.datetime(*parts).isoformat().encode()
    if isinstance(key, datetime.date):
        return b"D" + _integer(key.toordinal())
    if isinstance(key, datetime.timedelta):
        return b"T" + _integer(key // _MICROSECOND)
    if isinstance(key, datetime.timezone):
        return b"O" + _integer(key.utcoffset(None) // _MICROSECOND)
    offset = key.utcoffset()
    if offset is None:
        return b"H" + key.replace(tzinfo=None, fold=0).isoformat().encode()
    seconds = (key.hour * 60 + key.minute) * 60 + key.second
    return b"I" + _integer(seconds * 1_000_000 + key.microsecond - offset // _MICROSECOND)


def _thing_bytes(key: Any, encode: Encode) -> bytes | None:
    if isinstance(key, uuid.UUID) and type(key).__eq__ is uuid.UUID.__eq__:
        return b"u" + key.bytes
    if type(key) is range:
        return b"R" + encode((len(key), key.start, key.step)[: min(len(key), 2) + 1])
    if isinstance(key, pathlib.PurePosixPath):
        return b"Pp" + str(key).encode("utf-8", "surrogatepass")
    if isinstance(key, pathlib.PureWindowsPath):
        return b"Pw" + str(key).lower().encode("utf-8", "surrogatepass")
    if type(key) is memoryview:
        return encode(bytes(key))
    return None


def special_key(tag: bytes, content: bytes, decode: Callable[[bytes], Any]) -> Any:
    """The key of these bytes. Raises SegmentCorrupt."""
    make = _MAKERS.get(tag)
    if make is None:
        raise SegmentCorrupt(f"a key of {len(content) + 1} bytes has the unknown tag {tag!r}")
    try:
        return make(content, decode)
    except (ValueError, TypeError, OverflowError, ArithmeticError, struct.error) as error:
        raise SegmentCorrupt(f"{len(content) + 1} bytes are not a key: {error}") from None


def _ratio(content: bytes, decode: Callable[[bytes], Any]) -> Any:
    numerator, denominator = decode(content)
    ratio = fractions.Fraction(numerator, denominator)
    rest, places = ratio.denominator, 0
    for prime in (2, 5):
        power = 0
        while rest % prime == 0:
            rest //= prime
            power += 1
        places = max(places, power)
    if rest != 1:
        return ratio
    digits = decimal.Decimal(abs(ratio.numerator * 10**places // ratio.denominator)).as_tuple()
    return decimal.Decimal((int(ratio < 0), digits.digits, -places))


def _range(content: bytes, decode: Callable[[bytes], Any]) -> range:
    parts: tuple[int, ...] = decode(content)
    length, start, step = (*parts, *(0, 0, 1)[len(parts) :])
    return range(start, start + length * step, step)


def _path(content: bytes, _: Any) -> pathlib.PurePath:
    text = content[1:].decode("utf-8", "surrogatepass")
    if content[:1] == b"w":
        return pathlib.PureWindowsPath(text)
    return pathlib.Path(text) if os.name == "posix" else pathlib.PurePosixPath(text)


def _microseconds(content: bytes) -> datetime.timedelta:
    return datetime.timedelta(microseconds=int.from_bytes(content, "little", signed=True))


def _aware_time(content: bytes, _: Any) -> datetime.time:
    """The time in UTC; if that is outside the day, at an offset of whole minutes that moves it
    inside."""
    at = int.from_bytes(content, "little", signed=True)
    minutes = 0
    if at < 0:
        minutes = -(at // _MINUTE_US)
    elif at >= _DAY_US:
        minutes = -((at - _DAY_US) // _MINUTE_US + 1)
    offset = datetime.timedelta(minutes=minutes)
    moment = datetime.datetime(1, 1, 2) + datetime.timedelta(microseconds=at) + offset
    return moment.time().replace(tzinfo=datetime.timezone(offset))


_MAKERS: dict[bytes, Callable[[bytes, Callable[[bytes], Any]], Any]] = {
    b"r": _ratio,
    b"c": lambda content, _: complex(*_COMPLEX.unpack(content)),
    b"u": lambda content, _: uuid.UUID(bytes=content),
    b"P": _path,
    b"R": _range,
    b"D": lambda content, _: datetime.date.fromordinal(int.from_bytes(content, "little")),
    b"T": lambda content, _: _microseconds(content),
    b"N": lambda content, _: datetime.datetime.fromisoformat(content.decode()),
    b"A": lambda content, _: datetime.datetime.fromisoformat(content.decode()).replace(
        tzinfo=datetime.timezone.utc
    ),
    b"H": lambda content, _: datetime.time.fromisoformat(content.decode()),
    b"I": _aware_time,
    b"O": lambda content, _: datetime.timezone(_microseconds(content)),
}
