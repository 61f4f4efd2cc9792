"""A second handle that a process unpickles shares what the first one found out: no file is opened.

Whether it is opened is seen by a stand-in for _segment.open_file, which counts.
"""

import contextlib
import os
import pickle
import threading

import pytest
from support.children import in_child

import shmrhash
from shmrhash import RHashMap, _core, _lifetime, _map, _segment, _trust

KEY, VALUE = b"12345678", b"abcdefgh"


@pytest.fixture
def opened(monkeypatch):
    """The names of the files that this process opens as segments."""
    names = []
    open_file = _segment.open_file

    def opens(name, *arguments, **options):
        names.append(name)
        return open_file(name, *arguments, **options)

    monkeypatch.setattr(_segment, "open_file", opens)
    return names


def again(handle):
    return pickle.loads(pickle.dumps(handle))


def test_a_second_handle_of_a_process_opens_no_file(make_map, opened):
    m = make_map(map_extra=100)
    m[KEY] = VALUE

    second = again(m)
    third = again(second)

    assert opened == []
    assert (second[KEY], third[KEY]) == (VALUE, VALUE)
    for one in (second, third):
        assert (one.name, one.map_flags, one.map_extra) == (m.name, m.map_flags, m.map_extra)
        assert (one.ephemeral, one.recovered_at_open, one.closed) == (False, 0, False)
        assert one.info() | {"name": ""} == m.info() | {"name": ""}
    second[KEY] = bytes(8)
    assert m[KEY] == bytes(8)
    assert m.info()["processes"] == 1


def test_options_belong_to_each_handle(make_map, opened):
    m = make_map(timeout=5)
    writer = RHashMap.open(m.name, write_only=True, timeout=0.25, owner=12345)
    opened.clear()

    second, blind = again(m), again(writer)

    assert opened == []
    assert (second.timeout, second.write_only, second._owner) == (5, False, None)
    assert (blind.timeout, blind.write_only, blind._owner) == (0.25, True, 12345)
    with pytest.raises(shmrhash.WriteOnlyMap):
        blind[KEY]
    blind[KEY] = VALUE
    assert second[KEY] == VALUE
    writer.close()
    blind.close()


def test_a_reader_is_opened_with_its_own_rights(make_map, opened):
    m = make_map()
    m[KEY] = VALUE
    reader = RHashMap.open(m.name, read_only=True)
    opened.clear()

    with again(reader) as second:
        assert opened == [m.name]
        assert second.read_only
        with pytest.raises(shmrhash.ReadOnlyMap):
            second[KEY] = bytes(8)
    text = pickle.dumps(m)
    m.close()
    opened.clear()
    with pickle.loads(text) as writer:  # only the reader is open here
        assert opened == [m.name]
        writer[KEY] = bytes(8)
    reader.close()


def test_closing_one_handle_leaves_the_others(make_map, opened):
    m = make_map()
    second, third = again(m), again(m)

    m.close()
    second[KEY] = VALUE
    second.close()
    with pytest.raises(shmrhash.MapClosed):
        second[KEY]
    with again(third) as fourth:
        assert fourth[KEY] == VALUE
    assert opened == []
    third.close()


def test_without_an_open_handle_the_file_is_opened(make_map, opened):
    m = make_map()
    m[KEY] = VALUE
    text = pickle.dumps(m)
    m.close()

    with pickle.loads(text) as second:
        assert second[KEY] == VALUE
        assert second.info()["processes"] == 1
    assert opened == [m.name]


def test_the_map_that_has_the_name_now_is_opened(make_map, map_name, opened):
    m = make_map()
    text = pickle.dumps(m)
    m.unlink()
    with pytest.raises(shmrhash.SegmentMissing):
        pickle.loads(text)
    fresh = make_map(map_name)
    fresh[KEY] = VALUE
    opened.clear()

    with pickle.loads(text) as second:
        assert second[KEY] == VALUE
        assert KEY not in m
    assert opened == []  # the fresh map is open here, too
    m.close()


def test_a_map_of_other_sizes_under_the_name_is_refused(make_map, map_name):
    m = make_map()
    text = pickle.dumps(m)
    m.unlink()
    fresh = make_map(map_name, key_size=16)
    with pytest.raises(shmrhash.LayoutMismatch, match="key_size"):
        pickle.loads(text)
    m.close()
    fresh[bytes(16)] = VALUE


def test_a_child_of_fork_gets_a_slot_of_its_own(make_map, opened):
    m = make_map()
    text = pickle.dumps(m)

    def use():
        with pickle.loads(text) as first:
            before = list(opened)
            first[KEY] = VALUE
            with pickle.loads(text) as second:
                return before, list(opened), second.info()["processes"]

    assert in_child(use) == ([m.name], [m.name], 2)

    def use_inherited():
        m[KEY] = VALUE  # the child's first use of the map; nobody has looked at the name since
        with pickle.loads(text) as second:
            return list(opened), second.info()["processes"]

    assert in_child(use_inherited) == ([m.name], 2)
    assert opened == []
    assert m.info()["processes"] == 1


def test_the_user_of_the_file_is_asked_for_each_time(make_map, monkeypatch):
    """The user of a file may change, and a handle's owner is not another handle's."""
    m = make_map()
    asked = []

    def refuses(user, owner):
        asked.append((user, owner))
        return owner == 12345

    monkeypatch.setattr(_trust, "is_trusted", refuses)
    monkeypatch.setattr(_segment, "is_trusted", refuses)
    with pytest.raises(shmrhash.PermissionDenied):
        again(m)
    arguments = m.__reduce__()[1]
    named = (*arguments[:-1], (None, 12345))
    with _map._reopen(*named) as second:
        assert second._owner == 12345
    mine = os.geteuid()
    assert asked == [(mine, None), (mine, None), (mine, 12345)]


def test_a_file_of_another_size_is_opened_and_refused(make_map):
    m = make_map()
    path, size = m.info()["path"], os.stat(m.info()["path"]).st_size
    os.truncate(path, size + 4096)
    with pytest.raises(shmrhash.SegmentCorrupt):
        again(m)
    os.truncate(path, size)
    again(m).close()


@pytest.mark.parametrize("path", ["\0", "/dev/shm\0", "", "no/such/file"])
def test_a_path_that_names_nothing_shares_nothing(make_map, path):
    m = make_map()
    assert RHashMap._rejoin(m.name, path, None, None) is None
    assert RHashMap._rejoin(m.name, f"{m._path}\0", None, None) is None
    again(m).close()


def test_a_space_of_locks_is_no_map(map_name):
    with shmrhash.Sync(map_name) as space, contextlib.ExitStack() as stack:
        stack.callback(space.unlink)
        assert RHashMap._rejoin(map_name, space.handle._path, None, None) is None
        with pytest.raises(shmrhash.LayoutMismatch, match="space of locks"):
            _map._reopen(RHashMap, map_name, space.handle._path, (56, 96, 1), (False, False),
                         (None, None))  # fmt: skip
        assert not space.closed


def test_a_subclass_has_its_own_beginning(make_map, opened):
    class Named(RHashMap):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            self.label = "mine"

    m = make_map()
    function, (_, *rest) = m.__reduce__()
    with function(Named, *rest) as second:
        assert type(second) is Named
        assert second.label == "mine"
    assert opened == []


# ---- ephemeral maps, whose names other processes remove ----


def test_an_ephemeral_map_keeps_its_name_until_the_second_handle_is_closed(make_map):
    m = make_map(ephemeral=True)
    path = m.info()["path"]
    second = again(m)
    m.close()
    assert os.path.exists(path)
    assert second.ephemeral
    second.close()
    assert not os.path.exists(path)
    assert path not in _lifetime._ephemeral.values()


def test_no_handle_is_shared_before_the_name_was_seen(make_map, monkeypatch):
    """A process that holds nothing may be removing the name while another one attaches. Until that
    one has seen that no removal is under way, its other threads open the file, too."""
    m = make_map()
    path = m._path
    m.close()
    found = []
    wait = _segment.wait_for_removal

    def waits(fd, where):
        found.append(RHashMap._rejoin(m.name, path, None, None))
        done = wait(fd, where)
        found.append(RHashMap._rejoin(m.name, path, None, None))
        return done

    monkeypatch.setattr(_segment, "wait_for_removal", waits)
    with RHashMap.open(m.name) as first:
        assert found == [None, None]
        with again(first):
            assert len(found) == 2


def test_no_handle_is_shared_while_a_map_is_made(make_map, monkeypatch):
    found = []
    link = _segment.link_file

    def links(fd, name, path):
        link(fd, name, path)
        found.append(RHashMap._rejoin(name, path, None, None))

    monkeypatch.setattr(_segment, "link_file", links)
    m = make_map()
    assert found == [None]
    again(m).close()


def test_a_process_at_its_end_shares_no_handle(make_map, opened):
    """From then on the process does not keep an ephemeral map's name."""
    m = make_map()
    text = pickle.dumps(m)

    def end():
        with pickle.loads(text), pickle.loads(text):
            _core.process_leaves()
            before = len(opened)
            with pickle.loads(text):
                return before, len(opened)

    assert in_child(end) == (1, 2)


@pytest.mark.thorough
def test_threads_that_unpickle_and_close_always_find_the_map(make_map, duration):
    """Handles are shared or opened in turn, because the last one is closed again and again."""
    m = make_map(ephemeral=False)
    text = pickle.dumps(m)
    m.close()
    stop = threading.Event()
    failures, turns = [], [0] * 3

    def work(number):
        key = number.to_bytes(8, "little")
        try:
            while not stop.is_set():
                with pickle.loads(text) as own:
                    own[key] = turns[number].to_bytes(8, "little")
                    assert own[key] == turns[number].to_bytes(8, "little")
                turns[number] += 1
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    while min(turns) < 300 and not failures:
        stop.wait(0.01)
    stop.set()
    for thread in threads:
        thread.join()

    assert failures == []
    with pickle.loads(text) as last:
        assert last.info()["processes"] == 1
        last.check()


class Named(RHashMap):
    """A class of a program with an __init__ of its own."""

    def __init__(self, fd, name, path, read_only, timeout, **more):
        super().__init__(fd, name, path, read_only, timeout, **more)
        self.label = f"map {name}"


def test_a_derived_class_is_initialized_as_when_it_is_opened(make_map, opened):
    m = make_map()
    opened.clear()

    with Named.open(m.name) as named:
        first = again(named)
        assert opened == [m.name]
        assert (first.label, first.name) == (f"map {m.name}", m.name)
        first.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="changes the user")
def test_another_user_is_not_given_what_the_file_forbids(make_map):
    """A process that has changed its user opens the file, whose mode says who may."""
    m = make_map(mode=0o600)
    pickled = pickle.dumps(m)

    def as_nobody():
        os.setegid(65534)
        os.seteuid(65534)
        try:
            pickle.loads(pickled)
        except shmrhash.PermissionDenied:
            return "denied"
        return "given"

    assert in_child(lambda: (again(m).close(), as_nobody())[1]) == "denied"
