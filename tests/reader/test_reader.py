"""The reader in plain C: its copy of the layout, and what it reads of maps that Python writes."""

import itertools
import os
import random
import re
import struct
import subprocess
from pathlib import Path

import pytest

from shmrhash import SharedDict

ROOT = Path(__file__).resolve().parents[2]
READER = ROOT / "reader"
SEGMENT = ROOT / "cython" / "segment"
SUPPORT = ROOT / "tests" / "support"
SIZES = {"uint64_t": 8, "uint32_t": 4, "uint16_t": 2, "uint8_t": 1, "char": 1}


def compiled(source, output):
    """Compile a C program that includes the reader; a warning is an error."""
    compiler = os.environ.get("CC", "cc").split()
    command = [*compiler, "-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", f"-I{READER}"]
    done = subprocess.run(
        [*command, "-o", output, source], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return output


@pytest.fixture(scope="module")
def show(tmp_path_factory):
    """A function that runs the example on a map, and returns its lines."""
    program = compiled(READER / "show.c", tmp_path_factory.mktemp("reader") / "show")

    def shown(shared, *words):
        done = subprocess.run(
            [program, path_of(shared), *words], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    return shown


@pytest.fixture(scope="module")
def beside(tmp_path_factory):
    """A program that checks each of its reads, to be run while this process writes."""
    folder = tmp_path_factory.mktemp("beside")
    return compiled(SUPPORT / "reading_beside.c", folder / "reading_beside")


def path_of(shared):
    return Path(os.environ["SHMRHASH_DIR"]) / shared.name


# ---- the copy of the layout ----


def constants():
    """The numbers of the layout's enums, by name."""
    found = {}
    for path in ("layout", "classes", "file", "geometry", "../machine/hashing"):
        text = re.sub(r"#.*", "", (SEGMENT / f"{path}.pxd").read_text())
        for block in re.findall(r"^cdef enum:\n((?:    .*\n|\n)+)", text, re.MULTILINE):
            for constant, value in re.findall(r"^    (\w+) = (.+?) *$", block, re.MULTILINE):
                known = {"PROCESS_MAX": found.get("PROCESS_MAX")}
                found[constant] = eval(re.sub(r"ULL\b", "", value), known)
    return found


def structures():
    """The structs of the layout: for each, the offset and the size of each field; and the size."""
    found, numbers = {}, constants()
    for name in ("layout", "classes"):
        text = re.sub(r"#.*", "", (SEGMENT / f"{name}.pxd").read_text())
        for struct_name, body in re.findall(
            r"^cdef struct (\w+):\n((?:    .*\n|\n)+)", text, re.MULTILINE
        ):
            if "*" in body:
                continue  # private to a process
            fields, offset, largest = {}, 0, 1
            for kind, names in re.findall(r"^    (\w+) (.+?) *$", body, re.MULTILINE):
                size, align = found[kind][1:] if kind in found else (SIZES[kind], SIZES[kind])
                for field in names.split(","):
                    plain, _, length = field.strip().partition("[")
                    length = length.rstrip("]")
                    count = numbers[length] if length in numbers else int(length or 1)
                    offset = -(-offset // align) * align
                    fields[plain] = offset, size * count
                    offset += size * count
                    largest = max(largest, align)
            found[struct_name] = fields, -(-offset // largest) * largest, largest
    return found


def test_every_number_of_the_reader_is_that_of_the_layout(tmp_path):
    known = constants()
    text = (READER / "shmrhash_reader.h").read_text()
    own = re.findall(r"(?:^    |#define )SHMR_([A-Z_]+)(?: = | )\S", text, re.MULTILINE)
    shared = [name for name in own if name in known]
    alone = set(own) - set(known)

    program = tmp_path / "numbers.c"
    lines = ["#define _GNU_SOURCE", '#include "shmrhash_reader.h"', "int main(void) { return 0; }"]
    lines += [f'_Static_assert(SHMR_{name} == {known[name]}ULL, "{name}");' for name in shared]
    program.write_text("\n".join(lines))

    assert len(shared) >= 40
    assert alone == {"TRIES_MAX"}
    compiled(program, tmp_path / "numbers")


def test_every_field_of_the_reader_is_where_the_layout_has_it(tmp_path):
    """Every field of the reader's structs that copy a struct of the layout has the same offset; the
    reader has only the first part of the header."""
    text = (READER / "shmrhash_reader.h").read_text()
    pairs = {
        "shmr_field_place": "FieldPlace",
        "shmr_region": "Region",
        "shmr_pool": "Pool",
        "shmr_header": "Header",
        "shmr_bucket": "Bucket",
        "shmr_object_class": "ObjectClass",
        "shmr_objects": "Objects",
    }
    lines = ["#define _GNU_SOURCE", '#include "shmrhash_reader.h"', "int main(void) { return 0; }"]
    known = structures()
    for own, name in pairs.items():
        body = re.search(rf"typedef struct \{{([^}}]*)\}} {own};", text)[1]
        fields = re.findall(r"(\w+)(?:\[\d+\])?(?=[,;])", body)
        expected = list(known[name][0].items())[: len(fields)]
        assert fields == [field for field, _ in expected]
        for field, (offset, size) in expected:
            here = (
                f"offsetof({own}, {field}) == {offset} && sizeof((({own} *)0)->{field}) == {size}"
            )
            lines.append(f'_Static_assert({here}, "{own}.{field}");')
    program = tmp_path / "fields.c"
    program.write_text("\n".join(lines))

    assert len(lines) > 50
    compiled(program, tmp_path / "fields")


# ---- maps at rest ----


@pytest.mark.parametrize(
    ("key_size", "value_size", "max_entries"),
    [
        *((8, 8, 10), (8, 8, 100_000), (8, 8, 1 << 24), (4, 8, 1000), (1, 1, 300), (3, 5, 1000)),
        *((16, 40, 5000), (17, 300, 2000), (33, 9000, 200), (200, 1, 100)),
    ],
)
def test_walk_and_get_find_what_python_stored(
    make_map, show, seed, key_size, value_size, max_entries
):
    """The C reader finds what Python stored, in maps of sizes and limits that the geometry treats
    in different ways; the file's size agrees."""
    rng = random.Random(seed)
    shared = make_map(key_size=key_size, value_size=value_size, max_entries=max_entries)
    keys = list({rng.randbytes(key_size) for _ in range(min(max_entries, 1500))})
    model = {key: rng.randbytes(value_size) for key in keys}
    for key, value in model.items():
        shared[key] = value
    for key in keys[::3]:
        del shared[key]
        del model[key]

    *entries, count = show(shared)

    assert int(count) == len(entries) == len(model)
    assert {tuple(map(bytes.fromhex, entry.split())) for entry in entries} == set(model.items())
    assert show(shared, keys[1].hex()) == [model[keys[1]].hex()]
    assert show(shared, keys[0].hex()) == ["absent"]


@pytest.mark.parametrize("ttl", [None, 100])
def test_objects_of_every_length_are_found(map_name, show, ttl):
    """The C reader finds objects of all size classes, under keys stored in the entry and under
    longer ones."""
    with SharedDict.create(map_name, key=str, value=str, ttl=ttl, max_bytes=1 << 26) as shared:
        for length, size in itertools.product(
            (1, 15, 16, 17, 24, 25, 5000), (1, 7, 100, 4000, 5000, 200_000)
        ):
            key = f"{size}".ljust(length, "-")
            shared[key] = f"{length}".ljust(size, ".")
            assert show(shared, "str", key) == [shared[key]]
        assert show(shared, "str", "none") == ["absent"]
        shared.unlink()


def test_expired_entries_are_absent(map_name, show):
    with SharedDict.create(map_name, key=int, value=int, ttl=1000) as shared:
        shared.set(1, 10)
        shared.set(2, 20, ttl=1e-9)

        assert show(shared)[-1] == "1"
        assert show(shared, struct.pack("<q", 2).hex()) == ["absent"]
        shared.unlink()


def test_a_file_that_is_no_map_of_this_format_is_refused(map_name, make_map, show, tmp_path):
    shared = make_map()
    image = bytearray(path_of(shared).read_bytes()[:8192])
    other = bytearray(image)
    other[8] += 1
    damaged = bytearray(image)
    damaged[24] ^= 1
    for content, reason in (
        (other, "Protocol error"),
        (damaged, "Invalid argument"),
        (image, "Invalid argument"),  # its size is not that of the geometry
        (b"", "Invalid argument"),
    ):
        path = Path(os.environ["SHMRHASH_DIR"]) / f"{map_name}-image"
        path.write_bytes(content)
        with pytest.raises(AssertionError, match=reason):
            show(_Named(path.name))
        path.unlink()


class _Named:
    def __init__(self, name):
        self.name = name


# ---- maps that Python is writing ----


def write_until_it_ends(process, change):
    """Change the map again and again while the program reads; return how many changes it made."""
    changes = 0
    while process.poll() is None:
        change(changes)
        changes += 1
    assert process.communicate() == ("whole\n", None)
    return changes


def test_every_read_is_whole_while_python_writes_and_the_map_grows_and_shrinks(make_map, beside):
    """R2, I1: no read of the C reader is a mixture, and no key that stays in the map is missed or
    visited twice."""
    shared = make_map(key_size=8, value_size=40, max_entries=8192)
    rng = random.Random(1)

    def rows(numbers):
        """Batches of all these keys, with values that differ from batch to batch."""
        words = [number + 10_000 * rng.randrange(10**9) for number in numbers]
        keys = struct.pack(f"<{len(words)}Q", *numbers)
        return keys, b"".join(struct.pack("<5Q", *[word] * 5) for word in words)

    steady = [rows(range(500)) for _ in range(20)]
    coming = [rows(rng.sample(range(500, 3000), 2500)) for _ in range(20)]

    def change(number):
        keys, values = coming[number % 20]
        shared.update_batch(*steady[number % 20])
        shared.update_batch(keys, values)
        shared.update_batch(*steady[-number % 20])
        shared.delete_many(keys)

    shared.update_batch(*steady[0])
    command = [beside, path_of(shared), "entries", "1500"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    changes = write_until_it_ends(process, change)

    assert changes > 100
    assert shared.info()["grows"] > 100
    assert shared.info()["shrinks"] > 100


def test_every_object_is_whole_while_python_replaces_it(map_name, beside):
    """R2: the C reader reads whole objects of all lengths while their memory is freed and used
    again."""
    with SharedDict.create(map_name, key=str, value=bytes, max_bytes=1 << 24) as shared:
        rng = random.Random(2)

        def change(number):
            length = rng.choice((1, 20, 300, 4000, 5000, 60_000))
            shared[f"key-{number % 20}"] = bytes([length % 251]) * length

        for number in range(20):
            change(number)
        command = [beside, path_of(shared), "objects", "400"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

        assert write_until_it_ends(process, change) > 100
        shared.check()
        shared.unlink()
