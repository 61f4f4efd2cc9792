"""The types that a segment's schema describes, and the openers that it accepts."""

import json
import pickle
import sys

import numpy as np
import pytest
from support.dict_types import Packed, Place, Sample

import shmrhash
from shmrhash import Array, LayoutMismatch, SharedCounter, SharedDict
from shmrhash._types.structures import class_record

TYPES = [
    (str, int),
    (bytes, float),
    (int, bool),
    (float, str),
    (bool, bytes),
    ("<IH", "<qd"),
    (np.dtype("<i4"), np.dtype([("a", "<f4"), ("b", "S3", (2,)), (("title", "c"), "<M8[s]")])),
    (np.int16, np.dtype(("<f8", (2, 3)))),
    (str, Array("f4")),
    (str, Array([("x", "<i2"), ("y", [("z", "u1")])], (3, 4))),
]


@pytest.mark.parametrize(("key", "value"), TYPES)
@pytest.mark.parametrize("ttl", [None, 5, 0.25, float("inf")])
def test_a_dict_can_be_opened_without_naming_its_types(make_dict, map_name, key, value, ttl):
    """A handle that is opened without types has those of the creator, which the schema
    describes."""
    made = make_dict(key=key, value=value, ttl=ttl)

    with SharedDict.open(map_name) as opened:
        assert opened.handle.schema == made.handle.schema
        assert opened._schema.to_bytes() == made._schema.to_bytes()
        assert opened._default_ttl_ns == made._default_ttl_ns
        assert opened.info()["ttl"] == ttl
    with SharedDict.open(map_name, key=key, value=value) as opened:
        assert (opened.key_type, opened.value_type) == (key, value)
    with SharedDict(map_name, key=key, value=value, ttl=ttl) as opened:
        assert opened.handle.schema == made.handle.schema


def test_the_schema_is_readable_json(make_dict):
    d = make_dict(key=str, value="<qd", ttl=60)

    assert json.loads(d.handle.schema) == {
        "v": 1,
        "kind": "SharedDict",
        "key": "str",
        "value": {"struct": "<qd"},
        "ttl": 60,
    }


@pytest.mark.parametrize(
    ("made", "wanted", "complaint"),
    [
        ((str, int), (bytes, int), "key type str, but was opened with bytes"),
        ((str, int), (str, float), "value type int, but was opened with float"),
        ((str, object), (str, bytes), "value type object, but was opened with bytes"),
        (
            (str, "<q"),
            (str, "<d"),
            "struct format '<q', but was opened with the struct format '<d'",
        ),
        (
            (int, np.dtype("<f4")),
            (int, np.dtype("<f8")),
            "dtype <f4, but was opened with the dtype <f8",
        ),
        ((int, Array("f8")), (int, Array("f8", (3,))), r"shape=None\), but was opened with Array"),
        ((Packed, int), ("<q", int), r"dict_types\.Packed with number: c_int"),
    ],
)
def test_another_type_is_a_mismatch_that_names_both(make_dict, map_name, made, wanted, complaint):
    make_dict(key=made[0], value=made[1])
    types = {"key": wanted[0], "value": wanted[1]}

    for use in (SharedDict, SharedDict.open):
        with pytest.raises(LayoutMismatch, match=complaint):
            use(map_name, **types)


def test_another_limit_is_a_mismatch_that_names_the_remedy(make_dict, map_name):
    make_dict(key=str, value=str, max_entries=100, max_bytes=1 << 20)
    types = {"key": str, "value": str}

    for limits, complaint in (
        ({"max_entries": 200}, "max_entries=100, but was opened with 200; if_different='replace'"),
        (
            {"max_bytes": 1 << 21},
            "max_bytes=1048576, but was opened with 2097152; if_different='replace'",
        ),
    ):
        with pytest.raises(LayoutMismatch, match=complaint):
            SharedDict(map_name, **types, **limits)
    for limits in ({}, {"max_entries": 100}, {"max_bytes": (1 << 20) - 5}):
        with SharedDict(map_name, **types, **limits) as opened:
            assert opened.max_entries == 100


def test_each_handle_may_have_its_own_ttl(make_dict, map_name):
    """A handle that is opened without a ttl has the creator's; a handle that is pickled and loaded
    keeps its own."""
    types = {"key": str, "value": int}
    make_dict(**types, ttl=5)

    for given, expected in ((None, 5), (60, 60), (float("inf"), None), (5, 5)):
        with SharedDict(map_name, **types, ttl=given) as opened:
            opened["a"] = 1
            found = opened.ttl("a")
            assert found is None if expected is None else expected - 5 < found <= expected
            with pickle.loads(pickle.dumps(opened)) as again:
                assert again._default_ttl_ns == opened._default_ttl_ns


def test_a_ttl_for_a_dict_without_deadlines_is_a_mismatch_with_the_remedy(make_dict, map_name):
    make_dict(key=str, value=int)

    with pytest.raises(LayoutMismatch, match=r"made without ttl, .* no room .*; open it without"):
        SharedDict(map_name, key=str, value=int, ttl=5)


def test_a_class_must_be_named_to_open_its_dict(make_dict, map_name):
    make_dict(key=str, value=Packed)

    with pytest.raises(
        LayoutMismatch, match=r"class support\.dict_types\.Packed; open it with value="
    ):
        SharedDict.open(map_name)
    with SharedDict.open(map_name, value=Packed) as opened:
        assert opened.key_type is str


def test_a_class_with_other_fields_is_a_mismatch(make_dict, map_name):
    msgspec = pytest.importorskip("msgspec")

    def event(**fields):
        return msgspec.defstruct("Event", fields.items(), module="somewhere")

    make_dict(key=str, value=event(at=float, what=str))

    with SharedDict.open(map_name, value=event(at=float, what=str)):
        pass
    with pytest.raises(LayoutMismatch, match="at: float, what: str"):
        SharedDict.open(map_name, value=event(at=float, what=bytes))
    with pytest.raises(LayoutMismatch, match="opened with the dataclass"):
        SharedDict.open(map_name, value=Sample)


def test_a_class_of_the_main_module_is_equal_in_a_spawned_child():
    """A class of the main module fits itself in a spawned child, which knows the main module as
    __mp_main__."""
    here = type("Thing", (), {"__module__": "__main__"})
    there = type("Thing", (), {"__module__": "__mp_main__"})

    assert class_record(here, "dataclass", ["a: int"]) == class_record(
        there, "dataclass", ["a: int"]
    )


@pytest.mark.parametrize("types", [(object, int), (str, object), (object, object)])
def test_a_dict_of_pickles_is_not_opened_without_types_unless_trusted(make_dict, map_name, types):
    make_dict(key=types[0], value=types[1])
    role = "key" if types[0] is object else "value"

    with pytest.raises(shmrhash.InvalidArgument, match=f"{role}s of .* are pickles"):
        SharedDict.open(map_name)
    with SharedDict.open(map_name, trust=True) as trusted:
        assert (trusted.key_type, trusted.value_type) == types
    with SharedDict.open(map_name, key=types[0], value=types[1]):
        pass


def test_opening_a_plain_map_as_a_dict_is_a_mismatch(make_map, map_name):
    make_map()

    for use in (SharedDict, SharedDict.open, SharedCounter):
        with pytest.raises(LayoutMismatch, match="not a SharedDict"):
            use(map_name)


@pytest.mark.parametrize(
    ("schema", "complaint"),
    [
        (b"not JSON", "schema that is not"),
        (b"[]", "schema that is not"),
        (b'{"v": 1}', "schema that is not"),
        (b'{"v": 2, "kind": "SharedDict"}', "version 2"),
        (b'{"v": 1, "kind": "Other"}', "is a Other"),
        (b'{"v": 1, "kind": "SharedDict"}', "SharedDict of version 1"),
        (b'{"v":1,"kind":"SharedDict","key":"int","value":"later","ttl":null}', "'later'"),
        (b'{"v":1,"kind":"SharedDict","key":"int","value":"int","ttl":-1}', "ttl"),
        (b'{"v":1,"kind":"SharedDict","key":"str","value":"int","ttl":null}', "fields"),
        (b'{"v":1,"kind":"SharedDict","key":"int","value":{"array":1},"ttl":null}', "type"),
        (b'{"v":1,"kind":"SharedDict","key":"int","value":{"struct":5},"ttl":null}', "type"),
        (b'{"v":1,"kind":"SharedDict","key":"int","value":{"numpy":"O"},"ttl":null}', "type"),
    ],
)
def test_a_schema_of_another_program_is_a_mismatch(make_map, map_name, schema, complaint):
    """H1: a schema that is no schema of a SharedDict, or that does not describe the map that
    contains it, is refused by an error that says why."""
    make_map(_schema=schema)

    with pytest.raises(LayoutMismatch, match=complaint):
        SharedDict.open(map_name)


def test_a_class_with_very_many_fields_has_a_digest_in_the_schema(make_dict, map_name):
    msgspec = pytest.importorskip("msgspec")
    names = [f"field_with_a_long_name_{number:03}" for number in range(300)]
    wide = msgspec.defstruct("Wide", [(name, int) for name in names])
    wider = msgspec.defstruct("Wide", [(name, int) for name in [*names, "one_more"]])

    make_dict(key=wide, value=wide)

    with SharedDict.open(map_name, key=wide, value=wide):
        pass
    with pytest.raises(LayoutMismatch, match="301 fields"):
        SharedDict.open(map_name, key=wide, value=wider)


def test_types_too_long_to_describe_are_refused():
    with pytest.raises(shmrhash.TooLarge, match="1536"):
        SharedDict(key=int, value="<" + "qd" * 1000)


def test_creating_a_dict_that_exists_is_refused(make_dict, map_name):
    make_dict(key=str, value=int)

    with pytest.raises(shmrhash.SegmentExists):
        SharedDict.create(map_name, key=str, value=int)
    with pytest.raises(shmrhash.SegmentMissing):
        SharedDict.open(map_name + "-other")


def test_max_bytes_limits_the_objects_of_a_dict(make_dict):
    """W2, M1: a value that does not fit into max_bytes is refused by an error that names the limit,
    and changes nothing."""
    d = make_dict(key=str, value=bytes, max_bytes=1 << 20)
    d["a"] = b"a" * 100_000

    with pytest.raises(shmrhash.OutOfMemory, match=str(1 << 20)):
        d["b"] = b"b" * (1 << 20)
    with pytest.raises(shmrhash.OutOfMemory):
        d["a"] = b"b" * (1 << 20)

    assert dict(d) == {"a": b"a" * 100_000}
    with pytest.raises(MemoryError):
        d.update((f"k{number}", b"c" * 100_000) for number in range(100))
    assert d["a"] == b"a" * 100_000
    d.clear()
    d["b"] = b"b" * 500_000
    assert d["b"] == b"b" * 500_000


def test_a_full_dict_refuses_new_keys_and_takes_new_values(make_dict):
    """W2: a dict with max_entries entries refuses a new key, and stores new values under its
    keys."""
    d = make_dict(key=str, value=str, max_entries=10)
    for number in range(10):
        d[f"{number}" * 40] = "x" * 40

    with pytest.raises(shmrhash.MapFull):
        d["one more"] = "y" * 40

    d["3" * 40] = "z" * 400
    assert d["3" * 40] == "z" * 400
    assert len(d) == 10


def test_a_value_larger_than_any_object_is_too_large(make_dict):
    d = make_dict(key=str, value=bytes)
    big = np.zeros((256 << 20) + 1, "u1")  # zeros that are never touched take no memory

    with pytest.raises(shmrhash.TooLarge):
        d["a"] = memoryview(big)
    assert len(d) == 0


def test_numpy_is_imported_only_when_needed(tmp_path):
    import subprocess

    program = (
        "import sys, shmrhash\n"
        "d = shmrhash.SharedDict(key=str, value=int)\n"
        "d['a'] = 1\n"
        "print('numpy' in sys.modules, 'msgspec' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )

    assert (done.stdout, done.stderr) == ("False False\n", "")


def test_a_dataclass_key_comes_back_with_its_value(make_dict):
    pytest.importorskip("msgspec")
    d = make_dict(key=Place, value=int)

    d[Place("a", 1)] = 5

    assert d.copy() == {Place("a", 1): 5}
