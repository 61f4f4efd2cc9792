"""Special fields that a value may declare."""

import pytest

import shmrhash
from shmrhash import Kptr, Refcount, SpinLock, Timer
from shmrhash._fields import packed, unpacked


def test_fields_are_sorted_by_offset_and_come_back():
    fields = [Kptr(24), Timer(0), Refcount(16), SpinLock(8), Kptr(32)]

    pairs = packed(fields, 40)

    assert pairs == [(2, 0), (1, 8), (4, 16), (3, 24), (3, 32)]
    assert unpacked(pairs) == (Timer(0), SpinLock(8), Refcount(16), Kptr(24), Kptr(32))


def test_fields_of_different_kinds_are_not_equal():
    assert Kptr(8) == Kptr(8)
    assert Kptr(8) != Timer(8)
    assert (SpinLock.size, Timer.size, Kptr.size, Refcount.size) == (4, 8, 8, 4)


@pytest.mark.parametrize(
    ("fields", "value_size", "error", "complaint"),
    [
        ([Kptr(4)], 16, shmrhash.InvalidArgument, "multiples of 8"),
        ([SpinLock(12)], 16, shmrhash.InvalidArgument, "multiples of 8"),
        ([Timer(-8)], 16, shmrhash.InvalidArgument, "multiples of 8"),
        ([Kptr(16)], 16, shmrhash.InvalidArgument, "beyond the value of 16"),
        ([SpinLock(8)], 12, shmrhash.InvalidArgument, "beyond the value of 12"),
        ([Kptr(8), Timer(8)], 16, shmrhash.InvalidArgument, "overlap"),
        ([Kptr(0), Kptr(0)], 16, shmrhash.InvalidArgument, "overlap"),
        ([Timer(0), Timer(8)], 16, shmrhash.InvalidArgument, "at most 1 Timer, not 2"),
        ([SpinLock(0), SpinLock(8)], 16, shmrhash.InvalidArgument, "at most 1 SpinLock"),
        ([Kptr(8 * i) for i in range(5)], 40, shmrhash.TooLarge, "at most 3 Kptr, not 5"),
        ([(3, 0)], 8, TypeError, "not tuple"),
        ([Kptr], 8, TypeError, "not type"),
    ],
)
def test_fields_that_no_value_can_have_are_refused(fields, value_size, error, complaint):
    with pytest.raises(error, match=complaint):
        packed(fields, value_size)


def test_an_offset_must_be_an_integer():
    with pytest.raises(TypeError):
        Kptr("8")
    with pytest.raises(TypeError):
        Kptr(8.0)


def test_an_unknown_kind_in_a_segment_is_refused():
    with pytest.raises(shmrhash.InvalidArgument, match="kind 9"):
        unpacked([(9, 0)])
