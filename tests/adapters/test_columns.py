"""Columns and tables of pandas, Polars and Arrow become entries of a dict, and entries become
columns."""

import pandas
import polars
import pyarrow
import pytest

from shmrhash import SharedDict

NUMBERS = [1, 2, 3]
SERIES = {"pandas": pandas.Series, "polars": polars.Series, "arrow": pyarrow.array}
TABLES = {"pandas": pandas.DataFrame, "polars": polars.DataFrame, "arrow": pyarrow.table}
VALUES = {int: [5, 6, 7], float: [0.5, 1.5, 2.5], bool: [True, False, True], str: ["x", "", "zz"]}


@pytest.fixture(params=VALUES, ids=lambda kind: kind.__name__)
def value_type(request):
    return request.param


@pytest.mark.parametrize("make", SERIES.values(), ids=SERIES)
def test_columns_become_entries_of_the_same_types(make, value_type):
    values = VALUES[value_type]
    with SharedDict.from_arrays("columns", make(NUMBERS), make(values)) as d:
        d.unlink()
        assert (d.key_type, d.value_type) == (int, value_type)
        assert dict(d) == dict(zip(NUMBERS, values, strict=True))
        looked_up, found = d.lookup_many(make(NUMBERS))
        assert (looked_up.tolist(), found.all()) == (values, True)
        d.update_many(make(NUMBERS[:2]), make(values[1:]))
        assert (d[1], d[2], d[3]) == (values[1], values[2], values[2])


@pytest.mark.parametrize("make", TABLES.values(), ids=TABLES)
def test_tables_become_dicts_by_two_of_their_columns(make, value_type):
    values = VALUES[value_type]
    table = make({"other": values, "id": NUMBERS, "price": values})
    with SharedDict.from_table("tables", table, "id", "price") as d:
        d.unlink()
        assert dict(d) == dict(zip(NUMBERS, values, strict=True))
    with pytest.raises(KeyError, match="none"):
        SharedDict.from_table("tables", table, "none", "price")


def test_a_dict_is_an_arrow_stream_of_two_columns(value_type):
    values = VALUES[value_type]
    with SharedDict(key=str, value=value_type, max_entries=100) as d:
        d.update_many(["a", "b", "c"], values)
        table = pyarrow.table(d)
        assert table.column_names == ["key", "value"]
        assert dict(zip(*table.to_pydict().values(), strict=True)) == dict(d)
        assert polars.DataFrame(table).shape == (3, 2)
        assert pandas.DataFrame.from_arrow(d).shape == (3, 2)


def test_an_absent_number_in_a_column_is_refused():
    with SharedDict(key=int, value=int, max_entries=10) as d:
        for column in (pandas.Series([1, None]), pyarrow.array([1, None])):
            with pytest.raises(TypeError):
                d.update_many([1, 2], column)
