"""How people read and write keys and values: bpftool's words, and JSON in bpftool's layout."""

import json
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmrhash.cli.entries.formats import Pair, Raw, Spec, hex_lines
from shmrhash.cli.errors import Failure
from shmrhash.cli.words import Words, map_named, take_map


def taken(text, size, spec=None):
    words = Words(text.split())
    data = (spec or Spec()).fit(size, "key").from_words(words, "key")
    words.end()
    return data


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("1 2 3 255", b"\x01\x02\x03\xff"),
        ("0x01 0X2 0 017", b"\x01\x02\x00\x0f"),
        ("hex 01 2 ff 0", b"\x01\x02\xff\x00"),
        ("h 0x1f 10 a B", b"\x1f\x10\x0a\x0b"),
        ("hex 0102ff00", b"\x01\x02\xff\x00"),
        ("hex 0x0102 ff 00", b"\x01\x02\xff\x00"),
    ],
)
def test_bytes_are_read_as_bpftool_reads_them(text, data):
    assert data == taken(text, 4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "key expected 4 bytes got 0"),
        ("1 2 3", "key expected 4 bytes got 3"),
        ("1 2 3 4 5", "unexpected argument: '5'"),
        ("hex 0102030405", "key expected 4 bytes got 5"),
        ("1 2 x 4", "error parsing byte: x"),
        ("1 2 256 4", "error parsing byte: 256"),
        ("1 -2 3 4", "error parsing byte: -2"),
        ("08 1 2 3", "error parsing byte: 08"),
        ("hex zz 1 2 3", "error parsing byte: zz"),
        ("hex 012 1 2 3", "error parsing byte: 012"),
    ],
)
def test_words_that_are_no_bytes_are_refused(text, message):
    with pytest.raises(Failure) as caught:
        taken(text, 4)

    assert str(caught.value).startswith(message)


@given(st.binary(min_size=1, max_size=40))
def test_raw_bytes_are_read_back_from_each_form(data):
    """Raw bytes are read back from plain text, hex, hex without gaps, and the form in JSON."""
    raw = Raw(len(data))

    assert data == taken(" ".join(map(str, data)), len(data))
    assert data == taken("hex " + data.hex(" "), len(data))
    assert data == taken("hex " + data.hex(), len(data)) or len(data) == 1
    assert data == raw.from_json(raw.to_json(data), "key")


@given(st.integers(0, 2**64 - 1))
def test_numbers_are_read_back_from_each_form(number):
    spec = Spec("u64").fit(8, "key")

    data = spec.from_words(Words([hex(number)]), "key")

    assert number == int.from_bytes(data, "little")
    assert str(number) == spec.to_text(data)
    assert data == spec.from_json(json.loads(json.dumps(spec.to_json(data))), "key")


@given(st.text(max_size=8).filter(lambda text: "\0" not in text))
def test_text_is_read_back_from_each_form(text):
    spec = Spec("str").fit(32, "key")

    data = spec.from_json(text, "key")

    assert len(data) == 32
    assert text == spec.to_json(data)
    assert spec.to_text(data).isprintable()


@given(st.binary(min_size=8, max_size=8).filter(lambda data: not data.endswith(b"\0")))
def test_text_that_is_no_utf8_is_read_back(data):
    spec = Spec("str").fit(8, "key")

    assert data == spec.from_json(json.loads(json.dumps(spec.to_json(data))), "key")


@pytest.mark.parametrize(
    ("pattern", "words", "data", "plain"),
    [
        ("<IHH", "1 0x20 3", struct.pack("<IHH", 1, 32, 3), [1, 32, 3]),
        ("<q", "-5", struct.pack("<q", -5), -5),
        ("<dd", "1.5 -2", struct.pack("<dd", 1.5, -2), [1.5, -2.0]),
        (">H4s?", "7 ab true", struct.pack(">H4s?", 7, b"ab", True), [7, "ab", True]),
        ("3B", "1 2 3", b"\x01\x02\x03", [1, 2, 3]),
    ],
)
def test_structs_are_read_and_shown(pattern, words, data, plain):
    record = Spec("struct", pattern).fit(len(data), "value")

    assert data == record.from_words(Words(words.split()), "value")
    assert plain == record.to_json(data)
    assert data == record.from_json(plain, "value")


@pytest.mark.parametrize(
    ("spec", "words", "message"),
    [
        (Spec("u64"), "x", "does not fit"),
        (Spec("u64"), str(2**64), "does not fit"),
        (Spec("u64"), "-1", "does not fit"),
        (Spec("u64"), "", "got nothing"),
        (Spec("str"), "123456789", "has room for 8 bytes, but '123456789' has 9"),
        (Spec("struct", "<I"), "1", "has 8 bytes, but the struct '<I' has 4"),
        (Spec("struct", "<Y"), "1", "not a format of Python's struct"),
        (Spec("struct", "<II"), "1", "got nothing"),
    ],
)
def test_keys_that_do_not_fit_their_type_are_refused(spec, words, message):
    with pytest.raises(Failure, match=message.replace("(", r"\(")):
        taken(words, 8, spec)


def test_u64_needs_a_multiple_of_8_bytes():
    with pytest.raises(Failure, match="12 bytes"):
        Spec("u64").fit(12, "key")
    assert Spec("u64").fit(16, "key").to_json(struct.pack("<QQ", 1, 2)) == [1, 2]


def test_entry_has_the_line_breaks_of_bpftool():
    """An entry of up to 24 bytes is on one line; a key or value of 17 bytes or more begins on a
    line of its own; a line has 16 bytes, and a gap after 8."""

    def layout(key_size, value_size):
        pair = Pair(Raw(key_size), Raw(value_size))
        return pair.entry_text(bytes(key_size), bytes(value_size))

    assert layout(1, 2) == "key: 00  value: 00 00\n"
    assert layout(8, 16).count("\n") == 1
    assert layout(9, 16).count("\n") == 2
    assert layout(4, 17).startswith("key:\n00 00 00 00\nvalue:\n")
    assert hex_lines(bytes(9)) == "00 00 00 00 00 00 00 00  00"
    assert hex_lines(bytes(33)).splitlines()[2] == "00"


def test_map_can_be_named_in_every_way(own_directory):
    """A word that is the name of a map is no keyword, and neither is the last word."""
    for name in ("jobs", "n", "pin"):
        Path(own_directory, name).touch()
    inode = Path(own_directory, "jobs").stat().st_ino

    for words in (
        "jobs",
        "/jobs",
        "name jobs",
        "na jobs",
        "pinned {}/jobs",
        "{}/jobs",
        f"id {inode}",
        f"i {inode:#x}",
    ):
        assert take_map(Words(words.format(own_directory).split())).name == "jobs", words
    assert take_map(Words(["n", "key"])).name == "n"
    assert take_map(Words(["pin", "key"])).name == "pin"
    assert take_map(Words(["id"])).name == "id"
    assert f"{own_directory}/jobs" == map_named("jobs").path
