"""TableMethods: the operations of SharedDict on whole columns of keys and values.

Columns are NumPy arrays, or anything that NumPy, pandas, Polars or Arrow call a column, or plain
sequences. Where keys and values are numbers or rows that lie in the entry, and entries have no
deadlines, a column goes through the map's own batches: no Python object is made for an entry. Else
each entry is an operation of its own, called from C.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import islice, repeat
from typing import TYPE_CHECKING, Any, Literal

from shmrhash._errors import InvalidArgument
from shmrhash._mapping import MappingMethods
from shmrhash._progress import Progress, shown
from shmrhash._rows import new_mask, numpy_or_none
from shmrhash._typing import K, V
from shmrhash._views import ITEMS

if TYPE_CHECKING:
    from typing_extensions import Self

    class _Dict(MappingMethods[K, V]):  # with what is SharedDict's
        @property
        def key_type(self) -> Any: ...
        @property
        def value_type(self) -> Any: ...
        def close(self) -> None: ...
        def unlink(self) -> None: ...
else:
    _Dict = MappingMethods

_ABSENT: Any = object()
_CHUNK = 1 << 16  # entries between two calls of progress
_STORED = {int: "<i8", float: "<f8"}  # types with a fixed form in the entry, and that form
_KIND_TYPES = {"i": int, "u": int, "f": float, "b": bool, "U": str, "S": bytes}
_PLAIN = (str, int, float, bytes, bool)


class TableMethods(_Dict[K, V]):
    """The part of SharedDict that handles columns."""

    @classmethod
    def from_arrays(
        cls,
        name: str,
        keys: Any,
        values: Any,
        *,
        progress: Progress | Literal[True] | None = None,
        **options: Any,
    ) -> Self:
        """Create a dict that holds these entries.

        keys and values: columns of equal length: NumPy arrays, Series of pandas or Polars, Arrow
        arrays, or sequences. Unless options name them, the types of keys and values follow from the
        columns: int, float, bool, str, bytes, a NumPy dtype of rows, else object. If a key occurs
        twice, its last value counts. max_entries is the number of keys unless it is given.
        progress(done, total) is called every 65,536 entries and at the end; True draws a bar on a
        terminal (rich). options: as for create(). Costs a store for each key; on an error the new
        dict is removed again.

        Raises what create() and storing raise, InvalidArgument (columns of different lengths).
        """
        key_column, value_column = _column(keys), _column(values)
        options.setdefault("max_entries", max(len(key_column), 1))
        options.setdefault("key", _type_of(key_column))
        options.setdefault("value", _type_of(value_column))
        made: Self = cls.create(name, **options)  # type: ignore[attr-defined]  # SharedDict's
        try:
            made.update_many(key_column, value_column, progress=progress)
        except BaseException:
            made.unlink()
            made.close()
            raise
        return made

    @classmethod
    def from_table(
        cls,
        name: str,
        table: Any,
        key_column: str = "key",
        value_column: str = "value",
        **more: Any,
    ) -> Self:
        """Create a dict from two columns of a table: from_arrays() for a pandas or Polars
        DataFrame, an Arrow table, or anything else with the Arrow PyCapsule interface.

        Needs pyarrow. more: as for from_arrays().

        Raises KeyError (no such column), ModuleNotFoundError, what from_arrays() raises.
        """
        import pyarrow  # type: ignore[import-not-found]

        columns = pyarrow.table(table)
        keys, values = (columns.column(each) for each in (key_column, value_column))
        return cls.from_arrays(name, keys, values, **more)

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        """The entries as an Arrow stream of the columns key and value; see to_arrays().

        So pyarrow.table(d) and pandas.DataFrame.from_arrow(d) work, and
        polars.DataFrame(pyarrow.table(d)); polars.DataFrame(d) takes d for a dict of columns. Needs
        pyarrow.
        """
        import pyarrow

        keys, values = self.to_arrays()
        return pyarrow.table({"key": keys, "value": values}).__arrow_c_stream__(requested_schema)

    def to_arrays(self, *, progress: Progress | Literal[True] | None = None) -> tuple[Any, Any]:
        """All keys and all values, as two NumPy arrays of equal length; lists without NumPy.

        Each pair is as of some moment during the call (I1). int, float and bool give arrays of
        int64, float64 and bool, a NumPy dtype gives its own, all else gives arrays of objects.
        progress: as for from_arrays(); its total is an estimate. O(entries).

        Raises what reading raises.
        """
        forms = self._forms()
        with shown(progress, "reading") as tell:
            if forms is not None:
                found: tuple[Any, Any] = self.handle.to_arrays(
                    key_dtype=forms[0], value_dtype=forms[1], progress=tell
                )
                return found
            keys: list[Any] = []
            values: list[Any] = []
            pairs = self._entries(ITEMS)
            while True:
                chunk = list(islice(pairs, _CHUNK))
                keys.extend(key for key, _ in chunk)
                values.extend(value for _, value in chunk)
                if tell is not None:
                    tell(len(keys), max(len(self), len(keys)))
                if len(chunk) < _CHUNK:
                    break
        return _array_of(keys, self.key_type), _array_of(values, self.value_type)

    def lookup_many(self, keys: Any) -> tuple[Any, Any]:
        """The values of a column of keys: (values, found).

        values: as to_arrays() gives them; an absent key has 0, False, zeros or None there. found: a
        NumPy array of bool, or bytes of 0 and 1 without NumPy. Each lookup is atomic, as d[key] is;
        all together they are not. Costs a lookup for each key.

        Raises what d[key] raises, except KeyNotFound.
        """
        column = _column(keys)
        forms = self._forms()
        rows = None if forms is None else _fixed(column, self.key_type)
        if forms is not None and rows is not None:
            found: tuple[Any, Any] = self.handle.lookup_many(rows, dtype=forms[1])
            return found
        items = _items(column)
        values: list[Any] = list(map(self.get, items, repeat(_ABSENT)))
        mask = new_mask(len(items))
        nothing = {int: 0, float: 0.0, bool: False}.get(self.value_type)
        for i, value in enumerate(values):
            mask[i] = value is not _ABSENT
            if value is _ABSENT:
                values[i] = nothing
        return _array_of(values, self.value_type), _mask(mask)

    def contains_many(self, keys: Any) -> Any:
        """Whether each of a column of keys is in the dict: a NumPy array of bool, or bytes of 0, 1.

        As lookup_many(), without values; raises what `key in d` raises.
        """
        return _answers(map(self.__contains__, _items(_column(keys))))

    def update_many(
        self, keys: Any, values: Any, *, progress: Progress | Literal[True] | None = None
    ) -> int:
        """Store each value under its key, in turn; return how many there were.

        keys and values: columns as for from_arrays(). Each store is atomic, all together are not.
        The default ttl applies. progress: as for from_arrays(). Costs a store for each key.

        Raises what storing raises (the keys before the failing one are stored), InvalidArgument
        (columns of different lengths).
        """
        key_column, value_column = _column(keys), _column(values)
        total = len(key_column)
        if total != len(value_column):
            raise InvalidArgument(f"{total} keys, but {len(value_column)} values")
        store = self._store_columns(key_column, value_column)
        with shown(progress, "storing") as tell:
            for start in range(0, total, _CHUNK) if tell is not None else (0,):
                end = total if tell is None else min(total, start + _CHUNK)
                store(start, end)
                if tell is not None:
                    tell(end, total)
        return total

    def _store_columns(self, keys: Any, values: Any) -> Callable[[int, int], object]:
        """A function that stores a range of these columns."""
        if self._forms() is not None:
            key_rows, value_rows = _fixed(keys, self.key_type), _fixed(values, self.value_type)
            if key_rows is not None and value_rows is not None:
                return lambda start, end: self.handle.update_batch(
                    key_rows[start:end], value_rows[start:end]
                )
        names, things = _items(keys), _items(values)
        return lambda start, end: deque(
            map(self.__setitem__, names[start:end], things[start:end]), maxlen=0
        )

    def delete_many(self, keys: Any) -> Any:
        """Delete each key; return whether each was in the dict: as contains_many().

        Raises what del d[key] raises, except KeyNotFound.
        """
        items = _items(_column(keys))
        return _answers(each is not _ABSENT for each in map(self.pop, items, repeat(_ABSENT)))

    def add_many(self, keys: Any, deltas: Any, default: V | None = None) -> Any:
        """Add to the number under each key its delta, or one number for all; return the sums.

        deltas: a column, or one number. default: as for add(). Each addition is atomic (W1), all
        together are not; a key that occurs twice is added to twice. Costs an add() for each key.

        Raises what add() raises (the keys before the failing one are added to), InvalidArgument
        (columns of different lengths).
        """
        names = _items(_column(keys))
        each: Any = repeat(deltas)
        if not isinstance(deltas, (int, float)):
            each = _items(_column(deltas))
            if len(each) != len(names):
                raise InvalidArgument(f"{len(names)} keys, but {len(each)} deltas")
        return _array_of(list(map(self.add, names, each, repeat(default))), self.value_type)

    def _forms(self) -> tuple[Any, Any] | None:
        """The dtypes of keys and values in the entry; None unless both are numbers or rows there,
        beside nothing else, and NumPy is installed."""
        numpy = numpy_or_none()
        if numpy is None or self.handle._fields():
            return None
        forms = []
        for declared in (self.key_type, self.value_type):
            form = _STORED.get(declared) if isinstance(declared, type) else declared
            if form is None or not (isinstance(form, numpy.dtype) or form in _STORED.values()):
                return None
            forms.append(numpy.dtype(form))
        return None if self.key_type is float else (forms[0], forms[1])


def _column(given: Any) -> Any:
    """Something with a length, to take ranges and items of.

    Raises InvalidArgument (an array of another shape), TypeError.
    """
    dimensions = getattr(given, "ndim", 1)
    if dimensions < 1:
        raise InvalidArgument(f"a column has one dimension, not {dimensions}")
    if isinstance(given, (str, bytes)):
        raise TypeError(f"a column is an array or a sequence, not {type(given).__name__}")
    return given if hasattr(given, "__len__") and hasattr(given, "__getitem__") else list(given)


def _items(column: Any) -> Sequence[Any]:
    """The items of a column as Python objects."""
    if isinstance(column, (list, tuple)):
        return column
    numpy = numpy_or_none()
    if numpy is not None and isinstance(column, numpy.ndarray):
        rows = column.dtype.names is not None or column.ndim > 1
        return list(column) if rows else column.tolist()
    for name in ("to_pylist", "to_list", "tolist"):
        method = getattr(column, name, None)
        if method is not None:
            return method()  # type: ignore[no-any-return]
    return list(column)


def _type_of(column: Any) -> Any:
    """The type to declare for a column's items."""
    numpy = numpy_or_none()
    if numpy is not None and not isinstance(column, (list, tuple)):
        array = numpy.asarray(column)
        if array.ndim > 1:
            return numpy.dtype((array.dtype, array.shape[1:]))
        if array.dtype.kind == "V":
            return array.dtype
        if array.dtype.kind in _KIND_TYPES:
            return _KIND_TYPES[array.dtype.kind]
    kinds = {type(item) for item in _items(column)}
    return next(iter(kinds)) if len(kinds) == 1 and kinds <= set(_PLAIN) else object


def _fixed(column: Any, declared: Any) -> Any:
    """A column as an array of the form that its items have in the entry; None if NumPy alone cannot
    tell that every item fits."""
    numpy = numpy_or_none()
    array = numpy.asarray(column) if len(column) else None
    if array is None:
        return None
    kind, size = array.dtype.kind, array.dtype.itemsize
    if declared is int:
        fits = array.ndim == 1 and (kind == "i" or (kind == "u" and size < 8))
        return numpy.ascontiguousarray(array, "<i8") if fits else None
    if declared is float:
        fits = array.ndim == 1 and kind == "f" and size <= 8
        return numpy.ascontiguousarray(array, "<f8") if fits else None
    fits = array.dtype == declared.base and array.shape[1:] == declared.shape
    return numpy.ascontiguousarray(array) if fits else None


def _array_of(items: list[Any], declared: Any) -> Any:
    """Items as to_arrays() delivers them."""
    numpy = numpy_or_none()
    if numpy is None:
        return items
    if declared in (int, float, bool):
        return numpy.array(items, {int: "i8", float: "f8", bool: bool}[declared])
    if isinstance(declared, numpy.dtype):
        rows = numpy.zeros((len(items),), declared)
        for i, item in enumerate(items):
            if item is not None:
                rows[i] = item
        return rows
    return numpy.fromiter(items, object, len(items))


def _answers(answers: Iterable[bool]) -> Any:
    return _mask(bytearray(answers))


def _mask(answers: Any) -> Any:
    numpy = numpy_or_none()
    if numpy is None:
        return bytes(answers)
    return numpy.frombuffer(answers, bool) if isinstance(answers, bytearray) else answers
