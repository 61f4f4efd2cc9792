"""Regions: memory is committed from their start up to a watermark, and released."""

import fcntl
import os
import random
import struct

import pytest
from support.core.picture import REGIONS, held_by, owner_of

PAGE = 4096
BUCKETS = REGIONS.index("buckets")
READER_BYTE = 2 * 1024 + 1


def memory(image):
    """How many bytes of the segment's file have memory."""
    return os.fstat(image.fd).st_blocks * 512


def watermarks(image, which=BUCKETS):
    region = image.picture.header.regions[which]
    return region.usable, region.allocated


@pytest.fixture
def large(make_image):
    """A map whose region of buckets has up to 18 MiB."""
    return make_image(max_entries=1_000_000)


@pytest.mark.parametrize("which", range(5))
def test_commit_makes_the_needed_bytes_usable(make_image, seed, which):
    """M1: `usable` is whole pages, covers the needed bytes, and never passes the region's end."""
    image = make_image(max_entries=1_000_000)
    end = image.picture.geometry["region_bytes"][REGIONS[which]]
    needed = 1
    rng = random.Random(seed)
    while needed < end:
        before, _ = watermarks(image, which)

        assert image.region_commit(0, which, needed) == "OK"

        usable, allocated = watermarks(image, which)
        assert usable % PAGE == 0
        assert max(before, needed) <= usable <= allocated <= end
        assert image.picture.header.regions[which].lock == 0
        assert image.picture.context(0).region == which + 1
        needed += rng.randint(1, end // 5)
    assert image.region_commit(0, which, end) == "OK"
    assert (end, end) == watermarks(image, which)
    assert image.region_commit(0, which, end + 1) == "FULL"


def test_commit_allocates_the_memory(large):
    before, committed = memory(large), watermarks(large)[0]

    large.region_commit(0, BUCKETS, 1 << 20)

    assert memory(large) - before >= (1 << 20) - committed


def test_commits_grow_by_an_eighth_and_256_kib_at_most(large):
    """Many small requests need few system calls, and each step is short."""
    steps = 0
    while watermarks(large)[0] < 8 << 20:
        before = watermarks(large)[0]
        large.region_commit(0, BUCKETS, before + 1)
        step = watermarks(large)[0] - before
        assert before // 8 <= step <= before // 8 + PAGE or step == 256 << 10
        steps += 1

    assert steps < 100


def test_usable_memory_is_not_committed_again(large):
    large.region_commit(0, BUCKETS, 100_000)
    before = watermarks(large)

    assert large.region_commit(1, BUCKETS, 99_000) == "OK"
    assert before == watermarks(large)


def test_held_region_is_left_unchanged(large):
    """Commit and release return BUSY; the context has the region's lock word to wait for."""
    before = watermarks(large)
    region = large.picture.header.regions[BUCKETS]
    region.lock = held_by(1)

    assert large.region_commit(0, BUCKETS, 1 << 20) == "BUSY"
    assert owner_of(large.waits_for(0)[1]) == 1
    assert large.region_release(0, BUCKETS, PAGE) == "BUSY"
    assert before == watermarks(large)
    assert region.lock == held_by(1)


def test_commit_without_memory_changes_nothing(large):
    """M1: a file that ends early stands for a full file system: NO_MEMORY, and no SIGBUS."""
    before = watermarks(large)[0]
    offset = large.picture.geometry["region_offset"]["buckets"]
    os.ftruncate(large.fd, offset + before)

    assert large.region_commit(0, BUCKETS, 1 << 20) == "NO_MEMORY"

    assert before == watermarks(large)[0]
    assert large.picture.header.regions[BUCKETS].lock == 0
    os.ftruncate(large.fd, large.picture.geometry["segment_bytes"])
    assert large.region_commit(0, BUCKETS, 1 << 20) == "OK"
    assert watermarks(large)[0] >= 1 << 20


def test_release_gives_the_memory_back(large):
    """Memory that is committed again after a release is zero."""
    large.region_commit(0, BUCKETS, 1 << 20)
    index = (1 << 20) // 64 - 1
    large.picture.buckets[index].tags[0] = 77
    before = memory(large)

    assert large.region_release(1, BUCKETS, 5000) == "OK"

    assert watermarks(large) == (2 * PAGE, 2 * PAGE)
    assert before - memory(large) >= (1 << 20) - 2 * PAGE
    assert large.region_commit(0, BUCKETS, 1 << 20) == "OK"
    assert large.picture.buckets[index].tags[0] == 0


def test_release_never_takes_a_bucket_that_exists(large):
    """A split has raised the table word after the release was decided on: its bucket stays."""
    large.region_commit(0, BUCKETS, 1 << 20)
    before = watermarks(large)
    large.picture.header.table = (2 * PAGE // 64 + 1) << 16

    assert large.region_release(0, BUCKETS, 2 * PAGE) == "BUSY"
    assert before == watermarks(large)
    assert large.region_release(0, BUCKETS, 3 * PAGE) == "OK"


def test_memory_stays_while_a_context_is_inside_an_operation(large):
    """R1: a context inside an operation postpones the release."""
    large.region_commit(0, BUCKETS, 1 << 20)
    before, bytes_before = watermarks(large), memory(large)
    large.picture.context(2).activity = 7

    assert not large.memory_is_quiet(0)
    assert large.region_release(0, BUCKETS, PAGE) == "BUSY"

    assert before == watermarks(large)
    assert bytes_before == memory(large)
    assert large.picture.header.statistics.releases_postponed == 2
    assert large.picture.header.regions[BUCKETS].lock == 0
    large.picture.context(2).activity = 8
    assert large.region_release(0, BUCKETS, PAGE) == "OK"


def test_own_operation_does_not_postpone_a_release(large):
    large.picture.context(0).activity = 7

    assert large.memory_is_quiet(0)
    assert not large.memory_is_quiet(1)


def test_memory_stays_while_a_reader_without_context_is_attached(large):
    """R1: a reader that may not write the file has no context; it locks a byte of the file."""
    assert large.memory_is_quiet(0)
    reader = os.open(f"/proc/self/fd/{large.fd}", os.O_RDWR | os.O_CLOEXEC)
    try:
        lock = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, READER_BYTE, 1, 0)
        fcntl.fcntl(reader, fcntl.F_OFD_SETLK, lock)

        assert not large.memory_is_quiet(0)
    finally:
        os.close(reader)
    assert large.memory_is_quiet(0)


def test_memory_left_by_a_dead_commit_is_used_or_released(large):
    """C1: `allocated` covers every page that may exist, `usable` only pages that do."""
    region = large.picture.header.regions[BUCKETS]
    usable = region.usable
    offset = large.picture.geometry["region_offset"]["buckets"]
    os.posix_fallocate(large.fd, offset + usable, 1 << 20)
    region.allocated = usable + (1 << 20)
    before = memory(large)

    assert large.region_release(0, BUCKETS, usable) == "OK"

    assert (usable, usable) == watermarks(large)
    assert before - memory(large) >= 1 << 20
    region.allocated = usable + (1 << 20)
    assert large.region_commit(0, BUCKETS, usable + PAGE) == "OK"
    assert watermarks(large)[0] >= usable + PAGE
