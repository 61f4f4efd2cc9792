"""Making, finding and opening maps: the kernel's checks in its order, names, damage, races.

Code that could crash the process if the library were wrong runs in a child, which the parent
watches.
"""

import contextlib
import errno
import itertools
import os
import pickle
import random
import stat
import struct

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support import creation_jobs, model
from support.jobs import word
from support.stepping import segment_path
from support.workers import Crew, run_together

import shmrhash
from shmrhash import RHashMap

EIGHT = {"key_size": 8, "value_size": 8}
SMALL = EIGHT | {"max_entries": 100}

# Offset and size of each header field that is written once; and the offsets of fields that change.
FIXED_FIELDS = {
    "magic": (0, 8),
    "layout_version": (8, 4),
    "header_bytes": (12, 4),
    "key_size": (16, 4),
    "value_size": (20, 4),
    "max_entries": (24, 8),
    "map_flags": (32, 4),
    "map_extra": (36, 4),
    "depot_count": (40, 4),
    "ephemeral": (44, 4),
    "seeds": (48, 32),
    "segment_bytes": (80, 8),
    "checksum": (88, 8),
    "created_ns": (208, 8),
    "features": (216, 8),
}
MOVING_PARTS = range(256, 960)


@pytest.fixture
def file_named(map_name):
    """A function that writes bytes to the file of the map called map_name."""

    def put(content):
        segment_path(map_name).write_bytes(content)
        segment_path(map_name).chmod(0o600)

    yield put
    segment_path(map_name).unlink(missing_ok=True)


# The kernel's checks.


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"map_flags": 1 | model.RDONLY | model.WRONLY}, errno.EINVAL),
        ({"map_flags": 0}, errno.EINVAL),
        ({"map_flags": 1 | model.ZERO_SEED}, errno.EINVAL),
        ({"map_flags": 1 | model.NO_COMMON_LRU}, errno.EINVAL),
        ({"map_flags": 1 | 32}, errno.EINVAL),
        ({"map_flags": 1 | 512}, errno.EINVAL),
        ({"map_flags": 1 | 1 << 31}, errno.EINVAL),
        ({"map_flags": 1 | model.RDONLY_PROG | model.WRONLY_PROG}, errno.EINVAL),
        ({"key_size": 65536}, errno.E2BIG),
        ({"key_size": 1 << 31}, errno.E2BIG),
        ({"key_size": 0}, errno.EINVAL),
        ({"value_size": 0}, errno.EINVAL),
        ({"max_entries": 0}, errno.EINVAL),
        ({"max_entries": 2**33}, errno.E2BIG),
        ({"max_entries": 2**31 + 1}, errno.E2BIG),
        ({"map_extra": 1 << 32}, errno.EINVAL),
        ({"map_extra": 1 << 32 | 65536}, errno.EINVAL),
        ({"map_extra": 65536, "max_entries": 1 << 20}, errno.E2BIG),
        ({"map_extra": 65536, "max_entries": 4}, errno.E2BIG),
        ({"map_extra": 5, "max_entries": 4}, errno.EINVAL),
        ({"map_extra": 1, "max_entries": 0}, errno.EINVAL),
        ({"value_size": 4 << 20}, errno.E2BIG),
        ({"key_size": 65535, "value_size": 4 << 20}, errno.E2BIG),
        # Two mistakes at once: the first check in the kernel's order decides.
        ({"key_size": 65536, "map_flags": 0}, errno.EINVAL),
        ({"key_size": 65536, "max_entries": 0}, errno.E2BIG),
        ({"key_size": 65536, "map_extra": 1 << 32}, errno.E2BIG),
        ({"max_entries": 2**33, "key_size": 0}, errno.EINVAL),
        ({"max_entries": 2**33, "value_size": 4 << 20}, errno.E2BIG),
        ({"map_flags": 1 | 512, "map_extra": 65536, "max_entries": 1 << 20}, errno.E2BIG),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else errno.errorcode[value],
)
def test_arguments_that_the_kernel_refuses_are_refused_with_its_errno(map_name, wrong, error):
    """K1: each check of map creation has the kernel's errno, and leaves no file."""
    arguments = SMALL | wrong

    with pytest.raises(shmrhash.InvalidArgument) as refused:
        RHashMap.create(map_name, **arguments)

    assert error == refused.value.errno
    assert isinstance(refused.value, shmrhash.TooLarge) == (error == errno.E2BIG)
    assert isinstance(refused.value, ValueError)
    assert error == model.creation_errno(**arguments)
    assert not segment_path(map_name).exists()


def test_any_mixture_of_arguments_has_the_errno_of_the_first_check(map_name):
    """K1: random arguments get the errno of the first check that fails, which the model knows."""

    @settings(
        max_examples=300, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(
        key_size=st.sampled_from([0, 1, 8, 8, 8, 65535, 65536]),
        value_size=st.sampled_from([0, 1, 8, 8, 8, 4000, model.ELEMENT_SIZE_LIMIT, 1 << 23]),
        max_entries=st.sampled_from([0, 1, 5, 100, 100, 1 << 20, 1 << 31, (1 << 31) + 1, 1 << 33]),
        map_flags=st.sampled_from([1] * 8)
        | st.lists(st.sampled_from([1 << bit for bit in range(14)])).map(
            lambda bits: sum(set(bits))
        ),
        map_extra=st.sampled_from([0, 0, 0, 1, 5, 6, 65535, 65536, 1 << 32]),
    )
    @example(key_size=8, value_size=8, max_entries=1 << 31, map_flags=1, map_extra=65535)
    @example(key_size=65535, value_size=8, max_entries=1, map_flags=5, map_extra=1)
    def agrees(**arguments):
        try:
            m = RHashMap.create(map_name, **arguments)
        except shmrhash.Error as refused:
            found = refused.errno
        else:
            found = 0
            assert arguments["max_entries"] == m.max_entries
            assert arguments["map_extra"] == m.info()["map_extra"]
            m.check()
            m.close()
            shmrhash.unlink(map_name)
        expected = model.creation_errno(**arguments)
        # A map that needs more than the address space is too large here; the kernel fails only
        # when its memory runs out.
        huge = (
            arguments["max_entries"] * (arguments["key_size"] + arguments["value_size"]) > 1 << 43
        )
        assert found == expected or (huge and found == errno.E2BIG and expected == 0)

    agrees()


@pytest.mark.parametrize(
    "wrong",
    [
        {"key_size": -1},
        {"value_size": -8},
        {"max_entries": -1},
        {"map_extra": -1},
        {"map_flags": -1},
        {"key_size": 1 << 64},
        {"max_entries": 1 << 70},
    ],
    ids=str,
)
def test_numbers_that_fit_no_kernel_struct_are_refused(map_name, wrong):
    """K1: numbers below 0 or beyond 64 bits are errors of values, and no file is created."""
    with pytest.raises((ValueError, OverflowError)):
        RHashMap.create(map_name, **(SMALL | wrong))

    assert not segment_path(map_name).exists()


@pytest.mark.parametrize("wrong", [{"key_size": "8"}, {"max_entries": 1.5}, {"value_size": None}])
def test_arguments_of_wrong_types_are_type_errors(map_name, wrong):
    """K1: a size or a number of entries that is no integer is a TypeError."""
    with pytest.raises(TypeError):
        RHashMap.create(map_name, **(SMALL | wrong))

    assert not segment_path(map_name).exists()


def test_info_reports_the_requested_geometry(make_map):
    """K1: info() reports the geometry and the hint, but not the flags of the handle."""
    m = make_map(key_size=5, value_size=132, max_entries=1024, map_extra=256, map_flags=1 | 4)

    info = m.info()

    assert (m.key_size, m.value_size, m.max_entries) == (5, 132, 1024)
    assert (info["key_size"], info["value_size"], info["max_entries"]) == (5, 132, 1024)
    assert info["map_extra"] == 256
    assert info["map_flags"] == 1 | 4
    m.check()


# Names.


@pytest.mark.parametrize(
    "name",
    ["", "/", ".", "..", "/.", "/..", "a/b", "/a/b", "//a", "a/", "x" * 201, "x" * 300, "a\0b"],
    ids=repr,
)
def test_names_that_are_no_file_names_are_refused(name):
    """H1: create, open, open_or_create and unlink refuse the name before they do anything."""
    for refuse in (
        lambda: RHashMap.create(name, **SMALL),
        lambda: RHashMap.open(name),
        lambda: RHashMap.open_or_create(name, **SMALL),
        lambda: shmrhash.unlink(name),
    ):
        with pytest.raises(ValueError) as refused:
            refuse()
        assert isinstance(refused.value, shmrhash.InvalidArgument)
        assert refused.value.errno == errno.EINVAL


@pytest.mark.parametrize("name", [None, 7, b"bytes", ["list"]], ids=repr)
def test_names_that_are_no_strings_are_type_errors(name):
    """H1: the name of a map must be a str."""
    with pytest.raises(TypeError):
        RHashMap.create(name, **SMALL)
    with pytest.raises(TypeError):
        RHashMap.open(name)


def test_a_leading_slash_of_a_name_is_ignored(map_name):
    """H1: the names "/jobs" and "jobs" mean one map, as with shm_open."""
    with RHashMap.create("/" + map_name, **SMALL) as m, RHashMap.open(map_name) as other:
        m.update(word(1), word(2))

        assert word(2) == other[word(1)]
        with pytest.raises(shmrhash.SegmentExists):
            RHashMap.create(map_name, **SMALL)
        m.check()
    assert segment_path(map_name).exists()
    shmrhash.unlink("/" + map_name)
    assert not segment_path(map_name).exists()


def test_a_name_of_200_characters_works(map_name):
    """H1: a name may have 200 characters, all of which count."""
    name = map_name + "x" * (200 - len(map_name))

    with RHashMap.create(name, **SMALL) as m:
        with pytest.raises(shmrhash.SegmentMissing):
            RHashMap.open(name[:-1])
        with RHashMap.open(name) as other:
            other.check()
        m.unlink()


def test_the_file_has_the_requested_mode(make_map, map_name):
    """H1: the file's mode is 0600 unless another is given; the umask can only remove
    permissions."""
    before = os.umask(0o022)
    try:
        make_map()
        m = make_map(f"{map_name}-shared", mode=0o660)
    finally:
        os.umask(before)

    assert stat.S_IMODE(segment_path(map_name).stat().st_mode) == 0o600
    assert stat.S_IMODE(segment_path(f"{map_name}-shared").stat().st_mode) & ~0o660 == 0
    m.check()


def test_a_map_outlives_its_handles_until_it_is_unlinked(map_name):
    """C2: close() keeps the map and its contents; unlink() keeps the handles and frees the name."""
    with RHashMap.create(map_name, **SMALL) as m:
        m.update(word(1), word(2))
    with RHashMap.open(map_name) as m:
        assert word(2) == m[word(1)]
        shmrhash.unlink(map_name)
        m.update(word(3), word(4))
        with pytest.raises(shmrhash.SegmentMissing):
            RHashMap.open(map_name)
        with RHashMap.create(map_name, **SMALL) as successor:
            assert len(successor) == 0
            assert len(m) == 2
            successor.check()
            successor.unlink()
        m.check()
    with pytest.raises(shmrhash.SegmentMissing):
        shmrhash.unlink(map_name)


# Opening a file that is no map.


def test_opening_a_missing_map_is_a_file_not_found_error(map_name):
    """H1: SegmentMissing is a FileNotFoundError, with the name in its message."""
    with pytest.raises(shmrhash.SegmentMissing, match=map_name) as missing:
        RHashMap.open(map_name)

    assert isinstance(missing.value, FileNotFoundError)
    assert missing.value.errno == errno.ENOENT


@pytest.mark.parametrize(
    "content",
    [b"", b"x", b"hello, world\n" * 2000, bytes(1 << 20), b"\xff" * 8192, bytes(4096)],
    ids=["empty", "one byte", "text", "zeros", "ones", "a page"],
)
@pytest.mark.parametrize("read_only", [False, True])
def test_files_that_are_no_maps_are_refused(map_name, file_named, content, read_only):
    """H1: a file with other contents is refused and left unchanged."""
    file_named(content)

    (refused,) = run_together("fork", (creation_jobs.try_to_open, map_name, read_only))

    assert refused in ("LayoutMismatch", "SegmentCorrupt")
    assert content == segment_path(map_name).read_bytes()
    with pytest.raises(shmrhash.SegmentExists):
        RHashMap.create(map_name, **SMALL)
    with pytest.raises((shmrhash.LayoutMismatch, shmrhash.SegmentCorrupt)):
        RHashMap.open_or_create(map_name, **SMALL)


@pytest.mark.parametrize("kind", ["folder", "link", "broken link", "pipe"])
def test_paths_that_are_no_regular_files_are_refused(map_name, kind):
    """H1: folders, links and pipes are refused; open() follows no link and waits for no pipe."""
    path, target = segment_path(map_name), f"{map_name}-target"
    with contextlib.ExitStack() as cleanup:
        if kind == "folder":
            path.mkdir()
            cleanup.callback(path.rmdir)
        elif kind == "pipe":
            os.mkfifo(path)
            cleanup.callback(path.unlink)
        else:
            if kind == "link":
                RHashMap.create(target, **SMALL).close()
                cleanup.callback(shmrhash.unlink, target)
            path.symlink_to(segment_path(target))
            cleanup.callback(path.unlink)

        (refused,) = run_together(
            "fork", (creation_jobs.try_to_open, map_name, False), timeout_s=20
        )
        (refused_read_only,) = run_together(
            "fork", (creation_jobs.try_to_open, map_name, True), timeout_s=20
        )

    for found in (refused, refused_read_only):
        assert found not in ("opened", "SegmentMissing")
        assert issubclass(getattr(shmrhash, found), shmrhash.Error)


def fresh_segment(name):
    """Create and close a map with 50 entries; return its header."""
    with RHashMap.create(name, **SMALL) as m:
        for key in range(50):
            m.update(word(key), word(key + 1))
    with segment_path(name).open("rb") as file:
        return file.read(4096)


@pytest.mark.parametrize("field", FIXED_FIELDS)
def test_a_damaged_field_of_the_header_is_noticed(map_name, field):
    """H1: open() reports a mismatch or damage when any byte of a header field is changed."""
    header = fresh_segment(map_name)
    offset, size = FIXED_FIELDS[field]

    (found,) = run_together(
        "fork", (creation_jobs.open_with_damage, map_name, header, range(offset, offset + size))
    )

    assert {"LayoutMismatch", "SegmentCorrupt"} >= found
    with RHashMap.open(map_name) as m:
        assert len(m) == 50
        m.check()
    shmrhash.unlink(map_name)


def test_a_file_of_another_version_is_refused_with_both_versions(map_name):
    """H1: LayoutMismatch names the version of the file and the version that the library needs."""
    header = bytearray(fresh_segment(map_name))
    offset, _ = FIXED_FIELDS["layout_version"]
    (version,) = struct.unpack_from("<I", header, offset)
    struct.pack_into("<I", header, offset, 4711)
    with segment_path(map_name).open("r+b") as file:
        file.write(header)

    with pytest.raises(shmrhash.LayoutMismatch) as refused:
        RHashMap.open(map_name)

    assert "4711" in str(refused.value)
    assert str(version) in str(refused.value)
    assert refused.value.errno == errno.EINVAL
    shmrhash.unlink(map_name)


def survive_damage(name, damages, tmp_path):
    """Let a child use the map with each damage; it may refuse to, but must not die or hang."""
    progress = tmp_path / "progress"
    try:
        (endings,) = run_together(
            "fork",
            (creation_jobs.use_with_damage, name, damages, 50, progress),
            timeout_s=280,
        )
    except AssertionError as trouble:
        raise AssertionError(f"with {progress.read_text()}") from trouble
    assert endings.total() == len(damages)


@pytest.mark.thorough
def test_damage_to_changing_header_fields_neither_crashes_nor_hangs(seed, map_name, tmp_path):
    """H1: with any byte of the header's counters and locks changed, every operation ends."""
    fresh_segment(map_name)
    rng = random.Random(seed)

    survive_damage(map_name, [(at, rng.randrange(1, 256)) for at in MOVING_PARTS], tmp_path)

    shmrhash.unlink(map_name)


def damages_anywhere(name, seed, count):
    """Yield random places in the parts of the file that have memory, each with a random change."""
    rng = random.Random(seed)
    parts = creation_jobs.read_segment(segment_path(name))
    used = [offset + at for offset, content in parts for at, byte in enumerate(content) if byte]
    anywhere = [(offset, len(content)) for offset, content in parts]
    for number in range(count):
        offset, size = rng.choice(anywhere)
        at = rng.choice(used) if number % 3 else offset + rng.randrange(size)
        yield at, rng.choice([1, 2, 16, 128, 255, rng.randrange(1, 256)])


@pytest.mark.thorough
def test_damage_anywhere_neither_crashes_nor_hangs(seed, map_name, tmp_path):
    """H1: with random bytes of the segment changed, most of them in use, every operation ends."""
    fresh_segment(map_name)

    survive_damage(map_name, list(damages_anywhere(map_name, seed, 150)), tmp_path)

    shmrhash.unlink(map_name)


@pytest.mark.long
def test_much_damage_anywhere_neither_crashes_nor_hangs(seed, map_name, tmp_path):
    """H1: every operation ends in many more segments with random bytes changed."""
    fresh_segment(map_name)

    survive_damage(map_name, list(damages_anywhere(map_name, seed, 1_500)), tmp_path)

    shmrhash.unlink(map_name)


@pytest.mark.parametrize("length", [1, 100, 4095, 4096, 8192, 100_000, -4096, -1])
def test_a_truncated_file_is_noticed(map_name, length):
    """M1, H1: open() reports a truncated file as a mismatch or damage, and never gets SIGBUS."""
    fresh_segment(map_name)
    path = segment_path(map_name)
    os.truncate(path, length if length > 0 else path.stat().st_size + length)

    refused = [
        run_together("fork", (creation_jobs.try_to_open, map_name, read_only))[0]
        for read_only in (False, True)
    ]

    assert {"LayoutMismatch", "SegmentCorrupt"} >= set(refused)
    shmrhash.unlink(map_name)


# Permissions.


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("mode", [0o600, 0o000])
def test_a_private_map_is_not_opened_by_another_user(make_map, map_name, mode):
    """H1: a file without permission for this user is PermissionDenied, a PermissionError."""
    m = make_map()
    segment_path(map_name).chmod(mode)

    for read_only in (False, True):
        (refused,) = run_together(
            "fork", (creation_jobs.try_to_open_as_nobody, map_name, read_only)
        )
        assert refused == ("PermissionDenied", True, errno.EACCES)

    segment_path(map_name).chmod(0o600)
    m.check()


def test_a_read_only_handle_reads_and_never_writes(make_map, map_name):
    """K1: with a read-only handle every change is ReadOnlyMap, EPERM, also of an absent key."""
    m = make_map()
    m.update(word(1), word(2))

    with RHashMap.open(map_name, read_only=True) as reader:
        for key in (word(1), word(9)):
            for write in (
                lambda key=key: reader.update(key, word(3)),
                lambda key=key: reader.update(key, word(3), model.EXIST),
                lambda key=key: reader.delete(key),
                lambda key=key: reader.lookup_and_delete(key),
                lambda key=key: reader.add(key, 1),
                lambda key=key: reader.add(key, 1, default=0),
                lambda key=key: reader.__setitem__(key, word(3)),
                lambda key=key: reader.__delitem__(key),
                lambda: reader.clear(),
            ):
                with pytest.raises(shmrhash.ReadOnlyMap) as refused:
                    write()
                assert isinstance(refused.value, PermissionError)
                assert refused.value.errno == errno.EPERM

        assert word(2) == reader.lookup(word(1)) == reader[word(1)]
        assert reader.lookup(word(9)) is None
        assert len(reader) == 1
        m.update(word(1), word(5))
        assert word(5) == reader[word(1)]
        with pickle.loads(pickle.dumps(reader)) as copy, pytest.raises(shmrhash.ReadOnlyMap):
            copy.update(word(1), word(3))
    m.check()


def test_creating_with_rdonly_limits_only_the_creators_handle(map_name):
    """K1: BPF_F_RDONLY applies to the creator's handle only; other handles can write."""
    with RHashMap.create(map_name, **SMALL, map_flags=1 | model.RDONLY) as m:
        with pytest.raises(shmrhash.ReadOnlyMap) as refused, m:
            m.update(word(1), word(2))
        with RHashMap.open(map_name) as writer:
            writer.update(word(1), word(2))
            writer.check()
        with RHashMap.open(map_name, read_only=True) as reader:
            assert word(2) == reader[word(1)]
            assert reader.map_flags == 1 | model.RDONLY
        m.unlink()
    assert refused.value.errno == errno.EPERM


def test_creating_with_wronly_limits_only_the_creators_handle(map_name):
    """K1: BPF_F_WRONLY applies to the creator's handle, also when pickled; others can read."""
    with RHashMap.create(map_name, **SMALL, map_flags=1 | model.WRONLY) as m:
        m.update(word(1), word(2))
        with pickle.loads(pickle.dumps(m)) as copy:
            for use in (
                lambda: copy.lookup(word(1)),
                lambda: copy[word(1)],
                lambda: word(1) in copy,
                lambda: copy.lookup_and_delete(word(1)),
                lambda: copy.pop(word(1)),
                lambda: copy.add(word(1), 1),
                lambda: copy.exchange(word(1), word(3)),
                lambda: copy.locked(word(1)).__enter__(),
                lambda: list(copy),
                lambda: copy.get_next_key(),
                lambda: copy.lookup_batch(),
                lambda: copy.lookup_and_delete_batch(),
                lambda: copy.lookup_many(word(1)),
                lambda: copy.contains_many(word(1)),
                lambda: copy.to_arrays(),
            ):
                with pytest.raises(shmrhash.WriteOnlyMap) as refused:
                    use()
                assert refused.value.errno == errno.EPERM
            copy.update_many(word(5), word(6))
            copy.delete(word(1))
        with RHashMap.open(map_name) as reader:
            assert dict(reader.items()) == {word(5): word(6)}
        with pytest.raises(shmrhash.InvalidArgument):
            RHashMap.open(map_name, read_only=True, write_only=True)
        m.check()
        m.unlink()


def test_a_frozen_map_can_only_be_read(shm_map, map_name):
    """K1: freeze() applies to every handle and cannot be undone; a second freeze() is EPERM."""
    shm_map.update(word(1), word(2))
    section = shm_map.locked(word(1))
    value = section.__enter__()
    with RHashMap.open(map_name) as other:
        assert not other.frozen
        other.freeze()
        assert shm_map.frozen
        assert shm_map.info()["frozen"]
        value[:] = word(9)
        for write in (
            lambda: shm_map.update(word(1), word(3)),
            lambda: shm_map.update(word(5), word(3)),
            lambda: shm_map.delete(word(1)),
            lambda: shm_map.pop(word(1)),
            lambda: shm_map.add(word(1), 1),
            lambda: shm_map.update_many(word(1), word(3)),
            lambda: shm_map.delete_many(word(1)),
            lambda: shm_map.lookup_and_delete_batch(),
            lambda: shm_map.locked(word(1)).__enter__(),
            lambda: section.__exit__(None, None, None),
            shm_map.clear,
            shm_map.freeze,
            other.freeze,
        ):
            with pytest.raises(shmrhash.FrozenMap) as refused:
                write()
            assert refused.value.errno == errno.EPERM
        with RHashMap.open(map_name, read_only=True) as reader, pytest.raises(shmrhash.ReadOnlyMap):
            reader.freeze()
        assert list(other.items()) == [(word(1), word(2))]
        assert word(2) == other[word(1)]
    shm_map.check()


def test_operations_of_a_closed_handle_raise_map_closed(make_map, map_name):
    """H1: every operation of a closed handle is MapClosed, EBADF; closing it again does nothing."""
    m = make_map()
    m.update(word(1), word(2))
    m.close()
    m.close()

    assert m.closed
    assert map_name in repr(m)
    for use in (
        lambda: m.lookup(word(1)),
        lambda: m[word(1)],
        lambda: m.get(word(1)),
        lambda: word(1) in m,
        lambda: len(m),
        lambda: bool(m),
        lambda: m.update(word(1), word(1)),
        lambda: m.delete(word(1)),
        lambda: m.lookup_and_delete(word(1)),
        lambda: m.add(word(1), 1),
        lambda: m.clear(),
        lambda: m.info(),
        lambda: m.mem_usage(),
        lambda: m.check(),
    ):
        with pytest.raises(shmrhash.MapClosed) as refused:
            use()
        assert isinstance(refused.value, ValueError)
        assert refused.value.errno == errno.EBADF
    with RHashMap.open(map_name) as again:
        assert word(2) == again[word(1)]
        again.check()


# The geometry of an existing map.


@pytest.mark.parametrize(
    "other", [{"key_size": 4}, {"value_size": 16}, {"max_entries": 101}], ids=str
)
def test_open_or_create_refuses_a_map_of_another_geometry(make_map, map_name, other):
    """H1: a map of another geometry is LayoutMismatch, whose message has both numbers."""
    m = make_map(**SMALL)
    ((field, wanted),) = other.items()

    with pytest.raises(shmrhash.LayoutMismatch) as refused:
        RHashMap.open_or_create(map_name, **(SMALL | other))

    assert str(wanted) in str(refused.value)
    assert str(SMALL[field]) in str(refused.value)
    m.check()


def test_open_or_create_creates_and_then_opens(map_name):
    """H1: the first open_or_create() makes the map; the second finds what the first handle
    stored."""
    with RHashMap.open_or_create(map_name, **SMALL) as m:
        m.update(word(1), word(2))
        with RHashMap.open_or_create(map_name, **SMALL) as same:
            assert word(2) == same[word(1)]
        with pytest.raises(shmrhash.SegmentExists) as refused:
            RHashMap.create(map_name, **SMALL)
        assert isinstance(refused.value, FileExistsError)
        assert refused.value.errno == errno.EEXIST
        m.check()
        m.unlink()


# Races.


@pytest.mark.parametrize("method", ["fork", "thread"])
def test_of_racing_creators_one_wins_and_the_others_get_segment_exists(map_name, method):
    """C2: in each round all workers create a map of one name, and exactly one succeeds."""
    workers, rounds = 4, 25

    results = run_together(
        method, *((creation_jobs.create_names, map_name, rounds, SMALL) for _ in range(workers))
    )

    for number in range(rounds):
        outcomes = sorted(result[number] for result in results)
        assert ["SegmentExists"] * (workers - 1) + ["created"] == outcomes
        with RHashMap.open(f"{map_name}-{number}") as m:
            m.check()
        shmrhash.unlink(f"{map_name}-{number}")


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.thorough)])
def test_open_or_create_from_eight_processes_makes_one_map(map_name, method):
    """C2: eight processes open or create one map and add 1 to a count, which is 8 at the end."""
    rounds = 10 if method == "fork" else 3

    run_together(
        method, *((creation_jobs.count_in_names, map_name, rounds, SMALL) for _ in range(8))
    )

    for number in range(rounds):
        with RHashMap.open(f"{map_name}-{number}") as m:
            assert word(8) == m[word(0)]
            m.check()
        shmrhash.unlink(f"{map_name}-{number}")


@pytest.mark.thorough
def test_a_killed_creator_leaves_a_whole_map_or_no_file(map_name):
    """C1: creators are killed at ever later points of creation; a file that remains is a sound
    map."""
    folder = segment_path(map_name).parent
    others = {path.name for path in folder.iterdir()}
    seen = {"nothing": 0, "map": 0}

    for turns in itertools.chain(range(0, 4000, 100), range(4000, 80_000, 4000)):
        crew = Crew("fork", parties=2)
        creator = crew.start(creation_jobs.create_and_wait, map_name, SMALL)
        crew.gate.wait()
        for _ in range(turns):
            pass
        creator.kill()
        crew.join(deaths_allowed=True)

        new = {path.name for path in folder.iterdir() if path.name.startswith(map_name)} - others
        assert new <= {map_name}
        seen["map" if new else "nothing"] += 1
        if new:
            with RHashMap.open(map_name) as m:
                m.update(word(1), word(1))
                m.check()
            shmrhash.unlink(map_name)

    print(f"of the killed creators, left {seen}")


# A full file system.


@pytest.fixture
def tiny_folder(tmp_path, monkeypatch):
    """A folder on which a child mounts a tmpfs that only the child sees."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    monkeypatch.setenv("SHMRHASH_DIR", str(folder))
    return folder


def in_tiny_tmpfs(folder, job, *arguments, size):
    (result,) = run_together(
        "fork", (creation_jobs.in_private_tmpfs, str(folder), size, job, *arguments)
    )
    if result == "not permitted":
        pytest.skip("mounting a tmpfs is not permitted here")
    return result


@pytest.mark.thorough
def test_creation_without_room_is_refused_and_leaves_no_file(tiny_folder):
    """M1: creation in a file system with too little room is SegmentFull."""
    results = [
        in_tiny_tmpfs(tiny_folder, creation_jobs.create_without_room, size=pages * 4096)
        for pages in range(1, 40)
    ]

    full = [result for result in results if result[0] != "created"]
    assert full
    assert len(full) < len(results)
    for error, number, left, message in full:
        assert (error, number, left) == ("SegmentFull", errno.ENOMEM, [])
        assert "free" in message


@pytest.mark.parametrize("value_size", [8, 200, 3000])
def test_a_full_file_system_refuses_insertions_only(tiny_folder, value_size):
    """M1, W2: in a full file system only insertions fail; they succeed again when there is room."""
    result = in_tiny_tmpfs(tiny_folder, creation_jobs.fill_and_free, value_size, size=24 << 20)

    assert result["full"] == ("SegmentFull", errno.ENOMEM, True)
    assert "free" in result["message"]
    assert result["inserted_before"] > 0
    assert result["inserted_after"] > 0
    assert result["missing"] == []


def test_a_file_system_filled_by_other_files_refuses_insertions_only(tiny_folder):
    """M1: ballast takes every free byte at many sizes of the map; no operation gets SIGBUS."""
    result = in_tiny_tmpfs(tiny_folder, creation_jobs.fill_beside_ballast, size=24 << 20)

    assert result["refusals"] > 0
    assert result["missing"] == []
