"""Deploys: how two versions of a program may differ, and replacing a dict that does not fit."""

# ruff: noqa: UP006, UP007, UP045 (how types are spelled is what is tested)

import dataclasses
import enum
import io
import itertools
import pickle
import sys
import types
import typing

import pytest
from support.dict_types import Packed, Place
from support.workers import run_together

import shmrhash
from shmrhash import (
    Array,
    Cache,
    Change,
    Kptr,
    LayoutMismatch,
    Lock,
    MapFull,
    SharedCounter,
    SharedDict,
    Sync,
    Timer,
)
from shmrhash._types.descriptions import compatible, packed, text_of
from shmrhash._types.keys import encode_key
from shmrhash._types.messages import message_codec
from shmrhash._types.records import same_stored

msgspec = pytest.importorskip("msgspec")


class Old(enum.Enum):
    A = "a"


class New(enum.Enum):
    A = "a"
    B = "b"


def struct(name="Thing", _fields=(), **options):
    return msgspec.defstruct(name, _fields, **options)


def data(*fields):
    return dataclasses.make_dataclass("Thing", fields)


def default(value):
    return dataclasses.field(default=value)


X, Y = ("x", int), ("y", int)
NAMED = typing.NamedTuple("NAMED", [X, Y])
NAMED_SWAPPED = typing.NamedTuple("NAMED_SWAPPED", [Y, X])
NAMED_LONGER = typing.NamedTuple("NAMED_LONGER", [X, Y, ("z", int)])
NAMED_LONGER.__new__.__defaults__ = (0,)
NAMED_LONGER._field_defaults = {"z": 0}
POINT, TNIOP = (data(*fields) for fields in ((X, Y), (Y, X)))
ARRAY, YARRA = (struct(_fields=fields, array_like=True) for fields in ((X, Y), (Y, X)))

FITTING = {
    "spelling of an option": (data(("a", typing.Optional[int])), data(("a", "int | None"))),
    "spelling of containers": (data(("a", typing.List[int])), data(("a", list[int]))),
    "order of a union": (data(("a", typing.Union[int, str])), data(("a", typing.Union[str, int]))),
    "a default added": (data(X), data(X, ("y", int, default(5)))),
    "two defaults": (data(X, ("y", int, default(5))), data(X, ("z", str, default("")))),
    "a default inside": (
        data(("a", data(X))),
        data(("a", data(X, ("y", int, default(5))))),
    ),
    "order of fields": (POINT, TNIOP),
    "order inside": (data(("a", POINT)), data(("a", TNIOP))),
    "a dataclass and a Struct": (data(X), struct(_fields=[X])),
    "by position, longer": (
        struct(_fields=[X], array_like=True),
        struct(_fields=[X, ("y", int, 5)], array_like=True),
    ),
    "a field that has the name by rename": (
        struct(_fields=[("someName", int)]),
        struct(_fields=[("some_name", int)], rename="camel"),
    ),
    "unknown fields refused, none there": (
        struct(_fields=[X], forbid_unknown_fields=True),
        struct(_fields=[X]),
    ),
}
OTHER = {
    "retyped": (data(X), data(("x", str))),
    "retyped inside": (data(("a", data(X))), data(("a", data(("x", str))))),
    "retyped in a list": (data(("a", list[data(X)])), data(("a", list[data(("x", str))]))),
    "a field without default": (data(X), data(X, Y)),
    "one item more": (data(("a", tuple[int, int])), data(("a", tuple[int, int, int]))),
    "an enum's values": (data(("a", Old)), data(("a", New))),
    "literals": (data(("a", typing.Literal[1])), data(("a", typing.Literal[1, 2]))),
    "optional": (data(("a", int)), data(("a", typing.Optional[int]))),
    "array_like": (struct(_fields=[X]), struct(_fields=[X], array_like=True)),
    "tag": (struct(_fields=[X], tag="a"), struct(_fields=[X], tag="b")),
    "rename": (struct(_fields=[("a_b", int)]), struct(_fields=[("a_b", int)], rename="camel")),
    "swapped by position": (ARRAY, YARRA),
    "swapped inside": (data(("a", ARRAY)), data(("a", YARRA))),
    "swapped in a named tuple": (data(("a", NAMED)), data(("a", NAMED_SWAPPED))),
    "a named tuple, longer": (data(("a", NAMED)), data(("a", NAMED_LONGER))),
    "unknown fields refused": (
        struct(_fields=[X], forbid_unknown_fields=True),
        struct(_fields=[X, ("y", int, 5)]),
    ),
    "other defaults, left out": (
        struct(_fields=[("x", int, 1)], omit_defaults=True),
        struct(_fields=[("x", int, 2)], omit_defaults=True),
    ),
    "a limit": (
        data(("a", int)),
        data(("a", typing.Annotated[int, msgspec.Meta(ge=0)])),
    ),
}


def some(kind):
    """Return a value of a type of msgspec.inspect."""
    name = type(kind).__name__
    if name in ("DataclassType", "StructType"):
        return kind.cls(*(some(field.type) for field in kind.fields))
    if name == "NamedTupleType":
        return kind.cls(*(some(field.type) for field in kind.fields))
    if name == "UnionType":
        return some(kind.types[0])
    if name == "ListType":
        return [some(kind.item_type)]
    if name == "TupleType":
        return tuple(map(some, kind.item_types))
    if name == "LiteralType":
        return kind.values[-1]
    if name == "EnumType":
        return list(kind.cls)[-1]
    return {"IntType": 3, "StrType": "s", "NoneType": None}[name]


@pytest.mark.parametrize(("one", "other"), FITTING.values(), ids=FITTING)
def test_types_that_fit_read_each_others_values(make_dict, map_name, one, other):
    """Values of both types are read through both handles, and checked against msgspec."""
    for number, (first, second) in enumerate(itertools.permutations((one, other))):
        made = make_dict(name=f"{map_name}-{number}", key=int, value=first)
        with SharedDict(made.name, key=int, value=second) as opened:
            made[1] = some(msgspec.inspect.type_info(first))
            opened[2] = some(msgspec.inspect.type_info(second))
            for handle, cls in ((made, first), (opened, second)):
                assert [type(value) for value in handle.values()] == [cls, cls]
                for key in (1, 2):
                    common = {field[0] for field in fields_of(first)} & {
                        field[0] for field in fields_of(second)
                    }
                    for name in common - {"a"}:
                        assert attribute(handle[key], name) == 3


def fields_of(cls):
    return [(field.encode_name, field.name) for field in msgspec.inspect.type_info(cls).fields]


def attribute(value, stored_name):
    return getattr(value, dict(fields_of(type(value)))[stored_name])


@pytest.mark.parametrize(("one", "other"), OTHER.values(), ids=OTHER)
def test_types_that_do_not_fit_are_refused_with_the_remedy(make_dict, map_name, one, other):
    for number, (first, second) in enumerate(itertools.permutations((one, other))):
        made = make_dict(name=f"{map_name}-{number}", key=int, value=first)

        with pytest.raises(LayoutMismatch, match=r"if_different='replace'.*unlink"):
            SharedDict(made.name, key=int, value=second)
        with pytest.raises(LayoutMismatch, match="value type"):
            SharedDict.open(made.name, value=second)


@pytest.mark.parametrize(("one", "other"), FITTING.values(), ids=FITTING)
def test_types_that_fit_are_decoded_by_msgspec(one, other):
    for first, second in itertools.permutations((one, other)):
        message = msgspec.msgpack.encode(some(msgspec.inspect.type_info(first)))
        assert isinstance(msgspec.msgpack.decode(message, type=second), second)


def test_a_key_class_fits_only_itself(make_dict, map_name):
    """Keys are found by their bytes, so a key class with one more field would make every key a
    different one."""
    frozen = [
        dataclasses.make_dataclass("Place", fields, frozen=True)
        for fields in ([X], [X], [X, ("y", int, default(5))])
    ]
    make_dict(key=frozen[0], value=int)

    with SharedDict(map_name, key=frozen[1], value=int) as opened:
        opened[frozen[1](1)] = 5
        with SharedDict(map_name, key=frozen[0], value=int) as other:
            assert other[frozen[0](1)] == 5
    with pytest.raises(LayoutMismatch):
        SharedDict(map_name, key=frozen[2], value=int)


class Node(msgspec.Struct):
    value: int
    children: "list[Node]" = []  # noqa: RUF012 (msgspec copies it)
    other: "Node | None" = None


def test_recursive_classes_are_compared_by_their_shape(make_dict, map_name):
    made = make_dict(key=int, value=Node)
    made[1] = Node(1, [Node(2)])
    exec(
        "import msgspec\nclass Node(msgspec.Struct):\n    value: int\n    more: str = ''\n"
        "    children: 'list[Node]' = []\n    other: 'Node | None' = None\n",
        module := types.ModuleType("elsewhere").__dict__,
    )
    sys.modules["elsewhere"] = types.ModuleType("elsewhere")
    sys.modules["elsewhere"].__dict__.update(module)
    try:
        with SharedDict(map_name, key=int, value=module["Node"]) as opened:
            assert opened[1].children[0].value == 2
            assert opened[1].more == ""
    finally:
        del sys.modules["elsewhere"]


def test_a_class_defined_again_stores_into_the_same_dict(make_dict):
    """Running a notebook's cell again makes another class object of the same name and form; the
    dict accepts its instances."""
    made, again, other = data(X), data(X), data(("x", str))
    d = make_dict(key=int, value=made)

    d[1] = again(5)

    assert d[1] == made(5)
    with pytest.raises(TypeError, match="value must be Thing"):
        d[2] = other("a")


def test_structures_are_compared_by_their_stored_form(make_dict, map_name):
    """Two ctypes structures fit if their fields, including nested structures, are stored alike; the
    class name does not count."""
    import ctypes

    def outer(inner, name="Outer"):
        made = type("Inner", (ctypes.Structure,), {"_fields_": inner})
        return type(name, (ctypes.Structure,), {"_fields_": (("inner", made),)})

    fields = (("a", ctypes.c_int32), ("b", ctypes.c_int32))
    make_dict(key=int, value=outer(fields))

    with SharedDict(map_name, key=int, value=outer(fields, "Moved")) as opened:
        opened[1] = opened.value_type()
    with pytest.raises(LayoutMismatch):
        SharedDict(map_name, key=int, value=outer(fields[::-1]))
    with pytest.raises(LayoutMismatch):
        SharedDict(map_name, key=int, value=Packed)


@pytest.mark.parametrize("record", [None, 5, [], ["z"], ["z", "!"], {}, {"f": 5}, ["ref", 9]])
def test_a_type_description_from_a_stranger_fits_nothing(record):
    """H1: a program may find any JSON where a schema describes a class. The description of a class
    never fits one that no version of the library writes, and text_of() describes both to people."""
    mine = message_codec(Node, "value").record["stored"]

    assert not compatible(mine, record)
    assert not same_stored({"stored": mine}, {"stored": record}, "value")
    assert text_of(record)


def test_the_description_of_a_large_class_is_compressed_and_still_compared(make_dict, map_name):
    names = [(f"column_{number}", int, 0) for number in range(60)]
    made = make_dict(key=int, value=struct(_fields=names[:-1]))

    assert b'"z"' in made.handle.schema
    with SharedDict(map_name, key=int, value=struct(_fields=names)) as opened:
        opened[1] = opened.value_type(column_59=5)
    assert made[1].column_3 == 0
    assert packed({"f": []}) == {"f": []}


def test_declaring_a_dataclass_does_not_change_it(make_dict):
    """Declaring a dataclass changes neither it nor the classes of its fields, because a notebook's
    classes are pickled by value."""
    inner = data(X)
    cls = data(("a", inner), ("b", list[inner]), ("c", Old), ("d", NAMED))
    before = {one: dict(vars(one)) for one in (cls, inner, Old, NAMED)}

    d = make_dict(key=int, value=cls)
    d[1] = cls(inner(1), [inner(2)], Old.A, NAMED(1, 2))

    assert d[1] == cls(inner(1), [inner(2)], Old.A, NAMED(1, 2))
    for one, found in before.items():
        assert set(vars(one)) == set(found)


# if_different.


def test_replacing_makes_a_new_dict_and_leaves_the_old_one_usable(make_dict, map_name):
    old = make_dict(key=str, value=int)
    old["a"] = 1

    with SharedDict(map_name, key=str, value=str, if_different="replace") as new:
        new["a"] = "b"
        assert old["a"] == 1
        assert dict(new) == {"a": "b"}
        with SharedDict(map_name, key=str, value=str, if_different="replace") as same:
            assert same["a"] == "b"
        new.check()


def test_only_a_dict_is_replaced(make_map, map_name):
    made = make_map()

    with pytest.raises(LayoutMismatch, match="not a SharedDict"):
        SharedDict(map_name, if_different="replace")
    with shmrhash.RHashMap.open(map_name) as opened:
        assert opened.max_entries == made.max_entries
    with pytest.raises(shmrhash.InvalidArgument, match="if_different"):
        SharedDict(map_name, if_different="ignore")


def _start(gate, name):
    gate.wait()
    with SharedDict(name, key=int, value=int, if_different="replace") as d:
        with d.locked(0, default=0) as entry:
            entry.value += 1
        gate.wait()  # all processes have opened it
        return d[0]


@pytest.mark.thorough
def test_of_several_starters_one_replaces_and_all_open_the_new_dict(make_dict, map_name):
    """All processes count in one dict; if there were two dicts, neither would hold all the
    counts."""
    for round_number in range(10):
        name = f"{map_name}-{round_number}"
        make_dict(name=name, key=str, value=str)
        assert run_together("fork", *[(_start, name)] * 6) == [6] * 6


def test_a_pickled_handle_opens_its_dict_whatever_the_class_is_called(make_dict):
    d = make_dict(key=str, value=Node)
    d["a"] = Node(1)

    with pickle.loads(pickle.dumps(d)) as again:
        assert again["a"].value == 1


PICKLED = {
    *("_map.RHashMap", "_map._reopen", "_dict.SharedDict", "_dict._attach"),
    *("_counter.SharedCounter", "_types.arrays.Array", "_fields.Kptr", "_fields.Timer"),
    *("_views.SharedKeys", "_views.SharedValues", "_views.SharedItems"),
    *("_batch.Batch", "_batch.BucketInfo", "_errors.MapFull", "_changes.Change"),
    *("_waiting.CHANGED", "_waiting.GONE", "_keykinds.made_of_fields"),
    *("_cache.Cache", "_cache._attach", "_claims.CacheMutex", "_cachestats.CacheStats"),
    *("_sync.space._reopen", "_sync.primitive._restore", "_sync.locks.Lock"),
}


@pytest.mark.parametrize("name", sorted(PICKLED))
def test_what_earlier_pickles_name_is_still_there(name):
    """Pickles and stored keys made by an earlier version of the library name these classes and
    functions by their modules; they could not be read if one were renamed or moved."""
    module, _, thing = name.rpartition(".")

    found = pickle.loads(f"cshmrhash.{module}\n{thing}\n.".encode())

    assert thing in (getattr(found, "__name__", ""), repr(found).rpartition(".")[2])


def test_what_pickles_of_this_version_name_is_in_the_list_of_names_to_keep(make_dict, map_name):
    """Each object that a program may pickle, and a key that is pickled to be stored, is loaded by
    an unpickler that notes the names that it looks up."""
    named = set()

    class Noting(pickle.Unpickler):
        def find_class(self, module, name):
            named.add(f"{module}.{name}")
            return super().find_class(module, name)

    arrays = make_dict(key=str, value=Array("f8"))
    counter = SharedCounter.create(f"{map_name}-counter", key=str)
    cache = Cache(f"{map_name}-cache", max_entries=10)
    space = Sync(f"{map_name}-locks")
    with arrays, counter, cache, space:
        numbers = counter.handle
        views = [arrays.keys(), arrays.values(), arrays.items()]
        results = [numbers.lookup_batch(), next(numbers.walk()), cache.stats()]
        marks = [shmrhash.CHANGED, shmrhash.GONE, Change("deleted", "k", None)]
        parts = [Kptr(0), Timer(8), MapFull("full")]
        locks = [space, Lock("a", space=space), cache.mutex("k")]
        for thing in (arrays, counter, cache, *views, *results, *marks, *parts, *locks):
            Noting(io.BytesIO(pickle.dumps(thing))).load()
        for made in (counter, cache, space):
            made.unlink()
    Noting(io.BytesIO(encode_key(Place("a", 1))[1:])).load()

    ours = {name for name in named if name.startswith("shmrhash.")}
    assert ours == {f"shmrhash.{name}" for name in PICKLED}
