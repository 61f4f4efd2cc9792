"""Every refusal is one of shmrhash's errors; its message names the map and the remedy."""

import errno
import os
import resource
import subprocess
import sys

import pytest
from support.children import in_child
from support.stepping import segment_path

import shmrhash
from shmrhash import Error, InvalidArgument, PermissionDenied, RHashMap, SharedDict, _refusals
from shmrhash._trust import user_text

SIZES = {"key_size": 8, "value_size": 8, "max_entries": 100}


def error_in_child(function):
    """Call function in a child; return its error's class, whether that is ours, errno, message."""

    def act():
        try:
            function()
        except Exception as error:
            is_ours = isinstance(error, Error)
            return f"{type(error).__name__}|{is_ours}|{getattr(error, 'errno', None)}|{error}"
        return "nothing"

    return in_child(act)


def make(name):
    RHashMap.create(name, **SIZES).unlink()


MAKERS = {
    "create": make,
    "SharedDict": lambda name: SharedDict(name, key=str, value=bytes).unlink(),
    "anonymous": lambda _name: SharedDict(key=str, value=bytes).close(),
}
each_maker = pytest.mark.parametrize("maker", MAKERS.values(), ids=list(MAKERS))


@each_maker
def test_error_for_a_missing_directory_has_its_path(map_name, monkeypatch, maker):
    monkeypatch.setenv("SHMRHASH_DIR", "/nowhere/at/all")
    with pytest.raises(
        shmrhash.SystemFailure, match=r"/nowhere/at/all does not.*SHMRHASH_DIR"
    ) as e:
        maker(map_name)
    assert e.value.errno == errno.ENOENT
    assert isinstance(e.value, OSError)


@pytest.mark.parametrize(
    "call",
    [
        "RHashMap.create(NAME, key_size=8, value_size=8, max_entries=9)",
        "SharedDict(NAME, key=str, value=bytes)",
        "SharedDict(key=str, value=bytes)",
    ],
)
def test_error_without_proc_says_what_to_mount(map_name, call):
    """Without /proc a map cannot be given its name, nor can a process register in a map."""
    program = (
        f"from shmrhash import *\nNAME = {map_name!r}\n"
        f"try:\n    {call}\nexcept Error as error:\n    print(error)"
    )
    shell = 'mount --make-rprivate / && mount -t tmpfs tmpfs /proc && exec "$@"'
    command = ["unshare", "-m", "sh", "-c", shell, "sh", sys.executable, "-c", program]

    done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)

    if done.returncode and ("permitted" in done.stderr or "denied" in done.stderr):
        pytest.skip("mounting is not permitted here")
    assert "mount /proc" in done.stdout
    assert not os.path.exists(segment_path(map_name))


@each_maker
def test_file_instead_of_the_directory_is_refused(map_name, tmp_path, monkeypatch, maker):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SHMRHASH_DIR", str(tmp_path / "file"))
    with pytest.raises(Error, match="SHMRHASH_DIR"):
        maker(map_name)


@each_maker
def test_error_at_the_limit_of_file_sizes_names_the_limit(map_name, maker):
    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
        maker(map_name)

    told = error_in_child(limited)
    assert told.startswith(f"LimitReached|True|{errno.EFBIG}|map ")
    assert "ulimit -f" in told


def test_error_at_the_limit_of_descriptors_names_the_limit(map_name, make_map):
    make_map()

    def limited(use):
        last = os.dup(0)
        os.close(last)
        resource.setrlimit(resource.RLIMIT_NOFILE, (last, last))
        use()

    for use in (lambda: make(f"{map_name}-2"), lambda: RHashMap.open(map_name)):
        told = error_in_child(lambda use=use: limited(use))
        assert told.startswith(f"SystemFailure|True|{errno.EMFILE}|map ")
        assert "ulimit -n" in told


ERRNOS = {
    errno.EROFS: (PermissionDenied, "read-only.*SHMRHASH_DIR"),
    errno.ENOSPC: (shmrhash.SegmentFull, "--shm-size"),
    errno.ENOMEM: (shmrhash.SegmentFull, "memory limit"),
    errno.EDQUOT: (shmrhash.SegmentFull, "enlarge"),
    errno.EMFILE: (shmrhash.SystemFailure, "ulimit -n"),
    errno.ENFILE: (shmrhash.SystemFailure, "file-max"),
    errno.EFBIG: (shmrhash.SystemFailure, "max_bytes"),
    errno.ELOOP: (shmrhash.SystemFailure, "symbolic link"),
    errno.ENAMETOOLONG: (shmrhash.SystemFailure, "shorten"),
    errno.EOPNOTSUPP: (shmrhash.SystemFailure, "tmpfs"),
    errno.EIO: (shmrhash.SystemFailure, "Input/output error"),
}


@pytest.mark.parametrize("number", ERRNOS, ids=errno.errorcode.get)
@pytest.mark.parametrize("refuse", [_refusals.refuse, _refusals.refuse_creation])
def test_each_errno_of_the_system_has_a_class_and_a_remedy(number, refuse):
    kind, words = ERRNOS[number]
    with pytest.raises(kind, match=words) as refused:
        refuse(OSError(number, os.strerror(number)), "hits", "/dev/shm/hits")
    assert "'hits'" in str(refused.value)


def test_a_file_that_may_not_be_opened_is_named_with_its_owner_and_the_remedy(make_map):
    m = make_map()

    told = _refusals.permission_message(m.name, str(segment_path(m.name)))

    assert f"owner {user_text(os.geteuid())}, mode -rw-------)" in told
    assert told.endswith("share it with a group (mode=0o660), or choose another name")


def test_unlinked_map_with_closed_descriptor_is_found_or_refused(make_map):
    """Operations on entries go on; one that needs the file finds it by the mapping, or raises."""
    m = make_map()
    m[b"k" * 8] = b"v" * 8

    def cut_off():
        m[b"k" * 8] = b"v" * 8  # this registers the child in the map
        m.unlink()
        os.closerange(3, 200)  # with the pipe that reports; the exit code remains
        assert m[b"k" * 8] == b"v" * 8
        try:
            m.info()
        except shmrhash.SystemFailure as error:
            if "closed its descriptor" not in str(error):
                raise

    in_child(cut_off)
    RHashMap.create(m.name, **SIZES).close()  # because make_map unlinks it


# ---- names ----


@pytest.mark.parametrize(
    "tail", ["\udcff", "é", "a b", "\n", "\x1b[31m", "%s", "*", "-x"], ids=ascii
)
def test_map_of_any_valid_name_can_be_opened_and_unlinked(map_name, tail):
    name = f"{map_name}-{tail}"
    with RHashMap.create(name, **SIZES) as m, RHashMap.open(name) as again:
        again[b"k" * 8] = b"v" * 8
        assert m[b"k" * 8] == b"v" * 8
        m.check()
        m.unlink()
    RHashMap.create(name, **SIZES).close()
    shmrhash.unlink(name)
    with pytest.raises(shmrhash.SegmentMissing):
        RHashMap.open(name)


@pytest.mark.parametrize("use", [lambda name: make(name), RHashMap.open, shmrhash.unlink])
def test_name_that_no_file_can_have_is_refused(use):
    with pytest.raises(InvalidArgument, match="a map's name"):
        use("\ud800")


# ---- arguments ----


def test_calling_the_class_names_the_calls_that_make_a_map():
    with pytest.raises(
        TypeError, match=r"RHashMap\.create\(name.*open\(name\).*SharedDict\(name\)"
    ):
        RHashMap("hits")
    with pytest.raises(TypeError, match="create"):
        RHashMap()


@pytest.mark.parametrize(
    ("argument", "given", "words"),
    [
        ("max_entries", 1e6, "max_entries must be an int.*write 1000000"),
        ("max_entries", "many", "max_entries must be an int"),
        ("key_size", 8.0, "key_size must be an int.*write 8"),
        ("value_size", None, "value_size must be an int, not NoneType"),
        ("map_flags", "1", "map_flags must be an int"),
        ("map_extra", 1.5, "map_extra must be an int"),
        ("mode", "660", "mode must be an int.*0o660"),
    ],
)
def test_error_for_an_argument_of_another_type_names_the_argument(map_name, argument, given, words):
    with pytest.raises(TypeError, match=words):
        RHashMap.create(map_name, **(SIZES | {argument: given}))


def test_max_bytes_is_a_whole_number_within_limits(map_name):
    """The smallest accepted number is enough for one value of any size below it."""
    with pytest.raises(TypeError, match=r"max_bytes must be an int.*1 << 30"):
        SharedDict(map_name, max_bytes="1G")
    for too_few in (-1, 0, 1, 4096, (64 << 10) - 1):
        with pytest.raises(InvalidArgument, match="max_bytes must be at least 65536"):
            SharedDict(map_name, max_bytes=too_few)
    for too_many in (1 << 60, 1 << 64, 1 << 70):
        with pytest.raises(shmrhash.TooLarge, match="address space"):
            SharedDict(map_name, max_bytes=too_many)
    with SharedDict(map_name, key=str, value=bytes, max_bytes=64 << 10) as d:
        for size in (3, 1000, 4000, 5000, 29_000, 32_760, 64_000):
            d["a"] = bytes(size)
            assert d["a"] == bytes(size)
            d.clear()
        d.check()
        d.unlink()


@pytest.mark.parametrize("mode", [660, 0o1777, 0o4755, -1, 1 << 40])
def test_mode_with_more_than_permission_bits_is_refused(map_name, mode):
    with pytest.raises(InvalidArgument, match="mode must be from 0"):
        RHashMap.create(map_name, mode=mode, **SIZES)
    with pytest.raises(InvalidArgument, match="mode must be from 0"):
        SharedDict(map_name, mode=mode)


def test_error_for_a_decimal_mode_suggests_the_octal_one(map_name):
    with pytest.raises(InvalidArgument, match=r"did you mean 0o660\?"):
        RHashMap.create(map_name, mode=660, **SIZES)


def test_error_for_an_array_type_without_dtype_names_the_remedy(map_name):
    np = pytest.importorskip("numpy")
    for declared in (shmrhash.Array, np.ndarray, np.recarray):
        with pytest.raises(TypeError, match=r"needs the dtype of its items: Array\('f8'\)"):
            SharedDict(map_name, key=str, value=declared)


@pytest.mark.parametrize("declared", [list, dict, list[int], set, tuple], ids=str)
def test_error_for_a_container_type_suggests_object(map_name, declared):
    with pytest.raises(TypeError, match="object takes lists, dicts"):
        SharedDict(map_name, key=str, value=declared)


def test_error_for_a_second_section_of_a_thread_mentions_coroutines(make_map):
    m = make_map()
    m[b"k" * 8] = bytes(8)
    with m.locked(b"k" * 8), pytest.raises(shmrhash.DeadlockError, match="thread or greenlet"):
        m[b"k" * 8] = bytes(8)


@pytest.mark.parametrize("number", [1 << 63, -(1 << 63) - 1, 1 << 64, 1 << 70])
def test_counter_refuses_numbers_beyond_64_bits(map_name, number):
    with shmrhash.SharedCounter(map_name) as words:
        words.inc("a", 5)
        with pytest.raises(OverflowError):
            words.inc("a", number)
        assert words["a"] == 5
        words.check()
        words.unlink()


def test_map_for_which_one_descriptor_is_missing_is_refused_and_leaves_none_open(
    map_name, monkeypatch
):
    def refuse(_fd):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    before = os.listdir("/proc/self/fd")
    monkeypatch.setattr(os, "dup", refuse)

    with pytest.raises(shmrhash.SystemFailure, match="ulimit -n"):
        make(map_name)

    assert before == os.listdir("/proc/self/fd")
