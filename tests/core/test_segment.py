"""The examination of a segment before anything in it is used."""

import ctypes
import random

import pytest
from support.core.picture import REGIONS, Header

CHECKED_BYTES = 88


def examine(image, change=None):
    """The result of the examination of image's header after change(header)."""
    header = Header.from_buffer_copy(image.picture.header)
    if change is not None:
        change(header)
    return image.examine(bytes(header), image.picture.geometry["segment_bytes"])


@pytest.mark.parametrize(
    "numbers",
    [
        {},
        {"key_size": 1, "value_size": 1, "max_entries": 1, "depot_count": 1},
        {"key_size": 65_535, "value_size": 5000, "max_entries": 10, "depot_count": 256},
        {"max_entries": 2**31, "depot_count": 64},
        {"buckets": 1000},
    ],
)
def test_a_fresh_segment_is_accepted_and_sound(make_image, numbers):
    image = make_image(**numbers)

    assert examine(image) == "OK"
    assert image.check()[:2] == (0, 0)


def test_any_changed_bit_of_the_geometry_is_refused(image):
    """H1: with any bit of the checked bytes or of the checksum flipped, the result is not OK."""
    sound = bytes(image.picture.header)
    size = image.picture.geometry["segment_bytes"]
    for bit in range((CHECKED_BYTES + 8) * 8):
        damaged = bytearray(sound)
        damaged[bit // 8] ^= 1 << bit % 8

        expected = "ABSENT" if bit < 64 else "PRESENT" if bit < 96 else "CORRUPT"

        assert expected == image.examine(bytes(damaged), size), bit


def test_a_file_of_another_size_is_refused(image):
    """H1: a truncated segment would be SIGBUS at its first use."""
    size = image.picture.geometry["segment_bytes"]
    for other in (0, 4096, size - 4096, size - 1, size + 1, 2 * size):
        assert image.examine(bytes(image.picture.header), other) == "CORRUPT"


@pytest.mark.parametrize("name", REGIONS)
def test_watermarks_out_of_range_are_refused(image, name):
    """H1: a watermark is whole pages within the region, and not below that of a new segment."""
    which = REGIONS.index(name)
    end = image.picture.geometry["region_bytes"][name]
    first = () if name == "ring" else (0,)  # the ring has no memory at first
    for usable in (*first, 1, 4095, 4097, end + 4096, 1 << 63):
        status = examine(image, lambda header: setattr(header.regions[which], "usable", usable))  # noqa: B023
        assert status == "CORRUPT", usable
    assert examine(image, lambda header: setattr(header.regions[which], "usable", end)) == "OK"


def test_a_table_out_of_range_is_refused(image):
    limit = image.picture.geometry["bucket_max"]
    for count, expected in [
        (0, "CORRUPT"),
        (3, "CORRUPT"),
        (4, "OK"),
        (limit, "OK"),
        (limit + 1, "CORRUPT"),
        (2**48 - 1, "CORRUPT"),
    ]:
        status = examine(image, lambda header: setattr(header, "table", count << 16))  # noqa: B023
        assert expected == status, count


def test_more_credits_than_entries_are_refused(image):
    assert examine(image, lambda header: setattr(header, "credits", 4096 << 16)) == "OK"
    assert examine(image, lambda header: setattr(header, "credits", 4097 << 16)) == "CORRUPT"


def test_random_headers_are_refused(image, seed):
    """H1: the examination returns a status, whatever the file begins with."""
    rng = random.Random(seed)
    sound = bytes(image.picture.header)
    for _ in range(2000):
        damaged = bytearray(sound if rng.random() < 0.7 else bytes(ctypes.sizeof(Header)))
        for _ in range(rng.randint(1, 8)):
            damaged[rng.randrange(CHECKED_BYTES + 8)] ^= rng.randint(1, 255)

        status = image.examine(bytes(damaged), image.picture.geometry["segment_bytes"])

        assert status in ("ABSENT", "PRESENT", "CORRUPT") or damaged == sound
