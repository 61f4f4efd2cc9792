"""RESP3: the reader returns the same replies in whatever pieces the bytes of a server arrive."""

import random

import pytest

from shmrhash._near import resp
from shmrhash._near.resp import ProtocolError, Push, Reader, ServerError, command

REPLIES = [
    (b"+OK\r\n", b"OK"),
    (b":-12\r\n", -12),
    (b"(%d\r\n" % 7**60, 7**60),
    (b",1.5\r\n", 1.5),
    (b",inf\r\n", float("inf")),
    (b"#t\r\n", True),
    (b"#f\r\n", False),
    (b"_\r\n", None),
    (b"$-1\r\n", None),
    (b"*-1\r\n", None),
    (b"$0\r\n\r\n", b""),
    (b"$4\r\na\r\nb\r\n", b"a\r\nb"),
    (b"=8\r\ntxt:some\r\n", b"txt:some"),
    (b"*0\r\n", []),
    (b"*3\r\n:1\r\n$1\r\na\r\n*1\r\n_\r\n", [1, b"a", [None]]),
    (
        b"*6\r\n$1\r\na\r\n$-1\r\n$2\r\n\r\n\r\n$0\r\n\r\n:1\r\n$1\r\nb\r\n",
        [b"a", None, b"\r\n", b"", 1, b"b"],
    ),
    (b"~2\r\n:1\r\n:2\r\n", [1, 2]),
    (b"%2\r\n+a\r\n:1\r\n+b\r\n*0\r\n", {b"a": 1, b"b": []}),
    (b"|1\r\n+ttl\r\n:3\r\n+OK\r\n", b"OK"),
    (b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nk\r\n", [b"invalidate", [b"k"]]),
    (b">2\r\n$10\r\ninvalidate\r\n_\r\n", [b"invalidate", None]),
]  # fmt: skip


@pytest.mark.parametrize(("data", "reply"), REPLIES)
def test_each_kind_of_reply_is_read_byte_by_byte(data, reply):
    reader = Reader()
    found = [one for at in range(len(data)) for one in reader.feed(data[at : at + 1])]
    assert found == [reply]
    assert isinstance(found[0], Push) == data.startswith(b">")


def test_replies_come_out_in_order_however_they_are_cut(seed):
    rng = random.Random(seed)
    for _ in range(200):
        chosen = rng.choices(REPLIES, k=rng.randrange(1, 30))
        data = b"".join(each for each, _ in chosen)
        cuts = sorted(rng.choices(range(len(data) + 1), k=rng.randrange(8)))
        reader = Reader()
        found = []
        for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
            found += reader.feed(data[start:end])
        assert found == [reply for _, reply in chosen]


@pytest.mark.parametrize("data", [b"-ERR no such thing\r\n", b"!17\r\nERR no such thing\r\n"])
def test_errors_are_values_with_a_code(data):
    (error,) = Reader().feed(data)
    assert isinstance(error, ServerError)
    assert (error.code, str(error)) == ("ERR", "ERR no such thing")


@pytest.mark.parametrize(
    "data",
    [
        b"?\r\n",
        b"\r\n",
        b":12a\r\n",
        b"$x\r\n",
        b"$-2\r\n",
        b"$%d\r\n" % (resp.STRING_BYTES_MAX + 1),
        b"*%d\r\n" % (resp.ITEMS_MAX + 1),
        b"$1\r\nab\r\n",
        b"*2\r\n$1\r\na\r\n$1\r\nbc\r\n",
        b"*2\r\n$1\r\na\r\n$%d\r\n" % (resp.STRING_BYTES_MAX + 1),
        b"*1\r\n" * (resp.DEPTH_MAX + 1) + b":1\r\n",
        b"%1\r\n*0\r\n:1\r\n",
        b"+" + b"x" * (resp.LINE_BYTES_MAX + 2),
    ],
)
def test_bytes_that_break_the_protocol_are_refused(data):
    with pytest.raises(ProtocolError):
        Reader().feed(data)


def test_no_bytes_crash_or_hang_the_reader(seed):
    rng = random.Random(seed)
    for _ in range(3000):
        data = bytearray(b"".join(each for each, _ in rng.choices(REPLIES, k=4)))
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(len(data))] = rng.choice(b"+-:$*%~>|#_,(=!\r\n019x")
        reader = Reader()
        try:
            for at in range(0, len(data), 7):
                reader.feed(bytes(data[at : at + 7]))
        except ProtocolError:
            pass


def test_commands_are_arrays_of_strings():
    assert command("GET", b"a\r\nb") == b"*2\r\n$3\r\nGET\r\n$4\r\na\r\nb\r\n"
    assert command("SELECT", 3) == b"*2\r\n$6\r\nSELECT\r\n$1\r\n3\r\n"
