"""What only type checkers need of SharedDict, SharedCounter and Cache: type parameters, options.

A parameter that key= or value= does not decide is Any.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    from typing_extensions import ParamSpec, TypeVar

    K = TypeVar("K", default=Any)  # keys
    V = TypeVar("V", default=Any)  # values
    N = TypeVar("N", int, float, default=int)  # counts
else:
    from typing import ParamSpec, TypeVar

    K = TypeVar("K")
    V = TypeVar("V")
    N = TypeVar("N", int, float)

P = ParamSpec("P")  # of a memoized function, and what it returns
R = TypeVar("R")


class CreateOptions(TypedDict, total=False):
    """The options of SharedDict.create()."""

    max_entries: int | None
    max_bytes: int | None
    ttl: float | None
    timeout: float | None
    mode: int
    ephemeral: bool


class Options(CreateOptions, total=False):
    """The options of SharedDict(), and of Cache() with a few more."""

    owner: int | None
    if_different: str


class CacheOptions(Options, total=False):
    """The options of Cache()."""

    max_value_bytes: int | None
    tags: bool | None
    copy: bool


class OpenOptions(TypedDict, total=False):
    """The options of SharedDict.open()."""

    trust: bool
    read_only: bool
    timeout: float | None
    owner: int | None
