"""The maps below dicts and caches: typed keys and values, opened by a name or made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shmrhash import _segment
from shmrhash._constants import PAGE_BYTES, RACES_MAX
from shmrhash._creation import expect_possible, whole_pages
from shmrhash._errors import (
    InvalidArgument,
    LayoutMismatch,
    PermissionDenied,
    SegmentExists,
    SegmentMissing,
)
from shmrhash._gc import anonymous_name
from shmrhash._map import RHashMap
from shmrhash._refusals import restless_name
from shmrhash._types.schema import (
    REMEDY,
    REMEDY_OF_DICT,
    Schema,
    read_schema,
    restore_schema,
    with_ttl,
)

_MAX_ENTRIES = 1 << 20  # of a map whose maker names no limit

Limits = tuple[int | None, int | None]  # max_entries, max_bytes; None: not given


def open_or_create(
    start: Callable[[RHashMap, Schema], None],
    name: str,
    schema: Schema,
    limits: Limits,
    if_different: str,
    *,
    owner: int | None,
    timeout: float | None,
    made: tuple[Schema, Limits] | None = None,
    **options: Any,
) -> None:
    """Open the map of this name, if its types and limits fit, or create it; call start(handle,
    schema) with it. if_different: as for SharedDict(). made: the schema and limits of a new map, if
    they are others. options: as for RHashMap.create().

    Raises what SharedDict() raises.
    """
    is_cache = options.get("_is_cache", False)
    new_schema, new_limits = made or (schema, limits)
    expect_if_different(if_different)
    for _ in range(RACES_MAX):  # another process may create and unlink it each time
        try:
            handle = RHashMap.open(name, timeout=timeout, owner=owner)
        except SegmentMissing:
            try:
                handle = create_map(name, new_schema, new_limits, timeout=timeout, **options)
            except SegmentExists:
                continue
            start(handle, new_schema)
            return
        try:
            start(handle, _expect_types(handle, schema, limits, is_cache))
            return
        except LayoutMismatch:
            replaced = False
            try:
                if if_different == "replace" and handle._is_cache == is_cache:
                    _expect_possible(name, new_schema, new_limits)
                    replaced = _remove_replaced(handle)
            finally:
                handle.close()
            if not replaced:
                raise
        except BaseException:
            handle.close()
            raise
    raise restless_name(name)


def expect_if_different(if_different: str) -> None:
    """Raises InvalidArgument if it is neither "raise" nor "replace"."""
    if if_different not in ("raise", "replace"):
        raise InvalidArgument(f"if_different must be 'raise' or 'replace', not {if_different!r}")


def _expect_possible(name: str, schema: Schema, limits: Limits) -> None:
    """Refuse limits with which create_map() would fail, before another map is removed."""
    max_entries, max_bytes = limits
    expect_possible(
        name,
        schema.key.size,
        schema.value_size,
        list(schema.places),
        _MAX_ENTRIES if max_entries is None else max_entries,
        max_bytes if schema.has_objects or schema.births else None,
    )


def create_map(name: str, schema: Schema, limits: Limits, **options: Any) -> RHashMap:
    """A new map for a dict or cache of these types. options: as for RHashMap.create()."""
    max_entries, max_bytes = limits
    if schema.has_objects or options.get("_is_cache", False):
        options["max_bytes"] = max_bytes
    return RHashMap.create(
        name,
        key_size=schema.key.size,
        value_size=schema.value_size,
        max_entries=_MAX_ENTRIES if max_entries is None else max_entries,
        fields=schema.fields,
        _schema=schema.to_bytes(),
        **options,
    )


def create_anonymous(schema: Schema, limits: Limits, **options: Any) -> RHashMap:
    """As create_map(), with a name that no other map has and that goes with its last process."""
    return create_map(anonymous_name(), schema, limits, ephemeral=True, **options)


def _expect_types(handle: RHashMap, schema: Schema, limits: Limits, is_cache: bool) -> Schema:
    """Compare the types and limits of a map with the declared ones; return the handle's schema.

    Raises LayoutMismatch: they differ, the map is no dict, or it is a cache and no cache was asked
    for, or the other way round.
    """
    if handle._is_cache != is_cache:
        raise LayoutMismatch(
            f"segment {handle.name!r} is {'a Cache' if handle._is_cache else 'not a Cache'}; "
            f"choose another name, or unlink it"
        )
    record = read_schema(handle.schema, handle.name)
    found = restore_schema(record, handle.name, schema.key.declared, schema.value.declared)
    found = with_ttl(found, handle.name, schema.ttl)
    remedy = REMEDY if is_cache else REMEDY_OF_DICT
    if limits[0] not in (None, handle.max_entries):
        raise LayoutMismatch(
            f"segment {handle.name!r} has max_entries={handle.max_entries}, but was opened with "
            f"{limits[0]}; {remedy}"
        )
    given = limits[1] if schema.has_objects or is_cache else None
    if given is not None and handle.max_bytes != (
        given // PAGE_BYTES * PAGE_BYTES if is_cache else whole_pages(given)
    ):
        raise LayoutMismatch(
            f"segment {handle.name!r} has max_bytes={handle.max_bytes}, but was opened with "
            f"{given}; {remedy}"
        )
    return found


def _remove_replaced(handle: RHashMap) -> bool:
    """Remove the name of a dict that is to be replaced; False: it is no dict, and keeps its name.

    Processes that found the same dict do this one after another, under a lock of its file. So none
    of them takes the name from the new dict that the first of them makes.

    Raises PermissionDenied: the directory does not let this user remove it.
    """
    try:
        read_schema(handle.schema, handle.name)
    except LayoutMismatch:
        return False
    try:
        _segment.remove_name(handle._path, handle._identity())
    except PermissionError as error:
        raise PermissionDenied(f"segment {handle.name!r} cannot be replaced: {error}") from None
    return True
