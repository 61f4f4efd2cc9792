"""Array values, which are read in place, whatever their shape; and inline arrays."""

import gc

import numpy as np
import pytest

import shmrhash
from shmrhash import Array, SharedDict

ARRAYS = [
    np.arange(12.0).reshape(3, 4),
    np.zeros((0,)),
    np.zeros((3, 0, 2)),
    np.array(5.0),
    np.arange(24.0).reshape(2, 3, 4).transpose(2, 0, 1),
    np.arange(20.0)[::-3],
    np.ones((1,) * 32),
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: str(array.shape)[:24])
def test_an_array_of_any_shape_comes_back(make_dict, array):
    d = make_dict(key=str, value=Array("f8"))

    d["a"] = array
    found = d["a"]

    assert found.shape == array.shape
    assert found.dtype == np.float64
    assert np.array_equal(found, array)
    assert not found.flags.writeable
    assert found.flags.aligned
    assert found.flags.c_contiguous


@pytest.mark.parametrize(
    "dtype", ["i1", "<u2", ">f4", "c16", "M8[ns]", "S3", "U2", [("x", "u1"), ("y", "<f8")], "?"]
)
@pytest.mark.parametrize("shape", [None, (5,)])
def test_an_array_of_any_dtype_comes_back(make_dict, dtype, shape):
    d = make_dict(key=str, value=Array(dtype, shape))
    array = np.arange(5 * np.dtype(dtype).itemsize, dtype="u1").view(dtype)
    if array.dtype.kind in "US?":
        array = np.ones(5, dtype)

    d["a"] = array

    assert d["a"].dtype == np.dtype(dtype)
    assert d["a"].tobytes() == array.tobytes()


def test_nested_lists_are_converted_to_an_array(make_dict):
    d = make_dict(key=str, value=Array("f4", (2, 2)))

    d["a"] = [[1, 2], [3, 4.5]]

    assert d["a"].tolist() == [[1, 2], [3, 4.5]]


def test_an_array_is_read_without_copying(make_dict):
    """Two reads of one array return views of the same memory."""
    d = make_dict(key=str, value=Array("u1"))
    d["a"] = np.arange(1 << 20, dtype="u1")

    one, other = d["a"], d["a"]

    assert one.ctypes.data == other.ctypes.data
    assert d.info()["objects"]["pinned"] > 0
    with pytest.raises(ValueError, match="read-only"):
        one[0] = 1


def test_reading_more_arrays_than_views_allowed_makes_copies(make_dict):
    """A handle that has used up its share of pins reads copies, and leaves pins to the others."""
    d = make_dict(key=int, value=Array("f4", (3,)))
    d.update({number: np.full(3, number, "f4") for number in range(3000)})
    gc.collect()

    held = {number: d[number] for number in range(3000)}
    with SharedDict.open(d.name) as other:
        view = other[0]
        assert d.info()["objects"]["pinned"] == 1025
        del view
    d.update({number: np.zeros(3, "f4") for number in range(3000)})

    assert all((held[number] == number).all() for number in range(3000))
    assert d.info()["objects"]["views_copied"] == 3000 - 1024
    held.clear()
    gc.collect()
    assert d.info()["objects"]["pinned"] == 0
    one = d[0]
    assert d.info()["objects"]["pinned"] == 1
    del one


def test_values_read_by_walks_hold_no_views(make_dict):
    d = make_dict(key=int, value=Array("i4"))
    d.update({number: np.full(2, number, "i4") for number in range(50)})
    gc.collect()

    values, items, copied = list(d.values()), list(d.items()), d.copy()

    assert d.info()["objects"]["pinned"] == 0
    d.clear()
    assert sorted(int(value[0]) for value in values) == list(range(50))
    assert all((value == key).all() for key, value in [*items, *copied.items()])
    with pytest.raises(ValueError, match="read-only"):
        values[0][0] = 1


def test_an_array_is_unchanged_while_a_reference_to_it_exists(make_dict):
    """The bytes of an array that was read stay the same when its value is replaced, deleted or
    cleared, and when other values need memory."""
    d = make_dict(key=int, value=Array("u1"), max_bytes=8 << 20)
    d[0] = np.full(1 << 20, 7, "u1")
    held = d[0]
    part = held[5:10].reshape(5, 1)

    d[0] = np.full(1 << 20, 8, "u1")
    for number in range(1, 40):
        d[number % 5] = np.full(1 << 20, 9, "u1")
    del d[0]
    d.clear()
    del held
    gc.collect()

    assert part.ravel().tolist() == [7] * 5
    assert d.info()["objects"]["pinned"] == 1
    del part
    gc.collect()
    assert d.info()["objects"]["pinned"] == 0
    assert d.info()["objects"]["count"] == 0


def test_a_view_outlives_the_handle(make_dict, map_name):
    d = make_dict(key=str, value=Array("u1"))
    d["a"] = np.full(100_000, 3, "u1")
    with shmrhash.SharedDict.open(map_name) as other:
        held = other["a"]

    assert int(held.sum()) == 300_000


@pytest.mark.parametrize("value_type", [bytes, str, object])
def test_view_shows_the_bytes_of_a_value(make_dict, value_type):
    d = make_dict(key=str, value=value_type)
    d["a"] = b"abc" if value_type is bytes else "abc"

    view = d.view("a")

    assert view.readonly
    assert b"abc" in bytes(view)
    d["a"] = b"xyz" if value_type is bytes else "xyz"
    assert b"abc" in bytes(view)
    with pytest.raises(KeyError):
        d.view("b")


def test_an_array_of_a_dtype_with_a_shape_is_stored_inline(make_dict):
    d = make_dict(key=int, value=np.dtype(("<f4", (3,))))

    d[1] = np.array([1, 2, 3], "f4")
    found = d[1]
    found[0] = 9  # a copy

    assert d[1].tolist() == [1, 2, 3]
    assert "objects" not in d.info()
    with pytest.raises(TypeError, match="shape"):
        d[1] = np.zeros(4, "f4")


def test_a_record_is_a_copy_that_may_be_changed(make_dict):
    d = make_dict(key=int, value=np.dtype([("x", "<i8"), ("y", "<f8")]))
    d[1] = (1, 0.5)

    found = d[1]
    found["x"] = 2

    assert d[1]["x"] == 1
    d[1] = found
    assert d[1]["x"] == 2


def test_array_types_are_compared_and_checked():
    assert Array("f8", 3) == Array(float, (3,))
    assert Array("f8") != Array("f4")
    with pytest.raises(shmrhash.InvalidArgument):
        Array(object)
    with pytest.raises(TypeError):
        Array("nonsense")
