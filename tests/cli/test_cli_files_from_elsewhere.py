"""Imported files that were made by untrusted people, and exports into folders to which they may
write."""

import base64
import importlib.util
import io
import json
import os
import stat
import struct
import zlib
from pathlib import Path

import pytest
from support.commandline import run

from shmrhash import RHashMap

if importlib.util.find_spec("click"):
    from shmrhash.cli.files import newfile
    from shmrhash.cli.files.tables import ENDINGS

DAMAGED, USAGE = 5, 2
HEAD, CHUNK, NOTE = struct.Struct("<8sIIIIQQQ200s4xI"), struct.Struct("<4sIQ"), struct.Struct("<II")
NAMES = ["HOME/hits", "../hits", "a/b", "..", "h\0its", "/"]
TOKEN = "0123456789abcdef"


def snapshot(name, note=None, key_size=8, value_size=8):
    """Return a snapshot of one entry, with this head."""
    magic = b"SHMRSNP1" if note is None else b"SHMRSNP2"
    head = HEAD.pack(magic, key_size, value_size, 1, 0, 10, 0, 1, name.encode()[:200], 0)[:-4]
    data = b"k" * key_size + b"v" * value_size
    whole = head + struct.pack("<I", zlib.crc32(head))
    if note is not None:
        text = json.dumps(note).encode()
        whole += NOTE.pack(len(text), zlib.crc32(text)) + text
    whole += CHUNK.pack(b"CHNK", zlib.crc32(data), 1) + data
    return whole + CHUNK.pack(b"DONE", 0, 1)


def lines(name):
    sizes = {"key_size": 8, "value_size": 8, "max_entries": 10, "map_flags": 1, "map_extra": 0}
    head = {"shmrhash": "map", "name": name, **sizes, "max_bytes": 0, "fields": []}
    return json.dumps(head).encode() + b'\n{"key": "0x00", "value": "0x00"}\n'


def arrays(name):
    np = pytest.importorskip("numpy")
    file = io.BytesIO()
    rows = np.zeros(1, "V8")
    np.savez(file, keys=rows, values=rows, max_entries=10, name=name)
    return file.getvalue()


FILES = {"snap": snapshot, "ndjson": lines, "npz": arrays}


@pytest.mark.parametrize("name", NAMES, ids=ascii)
@pytest.mark.parametrize("ending", FILES)
def test_file_can_name_only_maps_of_the_segment_directory(own_directory, tmp_path, ending, name):
    """A name with a slash is a path on the command line, and is refused in a file."""
    (tmp_path / "home").mkdir()
    name = name.replace("HOME", f"{tmp_path}/home")
    (tmp_path / f"evil.{ending}").write_bytes(FILES[ending](name))

    refused = run("import", tmp_path / f"evil.{ending}", status=DAMAGED)

    assert "which is not a map's name" in refused.err
    assert os.listdir(own_directory) == []
    assert {path.name for path in tmp_path.iterdir()} == {"home", f"evil.{ending}"}
    assert not list((tmp_path / "home").iterdir())


@pytest.mark.parametrize("ending", ["snap", "npz"])
def test_map_named_on_the_command_line_replaces_the_files_name(own_directory, tmp_path, ending):
    (tmp_path / f"evil.{ending}").write_bytes(FILES[ending]("a/b"))
    run("import", tmp_path / f"evil.{ending}", "mine")
    with RHashMap.open("mine") as shared_map:
        assert len(shared_map) == 1
        shared_map.check()


def test_csv_file_has_no_name_of_a_map(tmp_path):
    (tmp_path / "hits.csv").write_text("key,value\n1,2\n")
    assert "the file names no map" in run("import", tmp_path / "hits.csv", status=USAGE).err


@pytest.mark.parametrize("shape", [(1, 0), (3, 0)])
def test_rows_of_no_bytes_are_refused(tmp_path, shape):
    """A file with rows of no bytes is refused with a message, not a ZeroDivisionError."""
    np = pytest.importorskip("numpy")
    rows = np.zeros(shape, "V8")
    np.savez(tmp_path / "hits.npz", keys=rows, values=rows, max_entries=10, name="hits")
    assert "0 bytes" in run("import", tmp_path / "hits.npz", status=DAMAGED).err


@pytest.mark.parametrize("max_bytes", [1 << 63, 1 << 64, 1 << 70, -1, 1])
def test_limits_that_no_map_can_have_are_refused(tmp_path, max_bytes):
    """A file with limits that no map can have is refused with a message, not an OverflowError."""
    schema = base64.b64encode(b"").decode()
    note = {"max_bytes": max_bytes, "fields": [[3, 0]], "schema": schema}
    (tmp_path / "hits.snap").write_bytes(snapshot("hits", note))
    assert "bytes" in run("import", tmp_path / "hits.snap", status=USAGE).err


# ---- export ----


@pytest.mark.parametrize("ending", sorted({"snap", "csv", "npz", "ndjson"}))
def test_export_follows_no_link_at_its_temporary_name(hits, tmp_path, monkeypatch, ending):
    """The temporary name of an export cannot be guessed; and if a link had that name, the export
    would refuse it."""
    assert f".{ending}" in ENDINGS
    monkeypatch.setattr(newfile.secrets, "token_hex", lambda _size: TOKEN)
    victim = tmp_path / "victim"
    victim.write_text("as it was")
    (tmp_path / f".hits.{ending}.{TOKEN}").symlink_to(victim)
    with pytest.raises(FileExistsError), newfile.new_file(str(tmp_path / f"hits.{ending}")):
        pass
    assert victim.read_text() == "as it was"
    assert not (tmp_path / f"hits.{ending}").exists()

    for part in (f"hits.{ending}.part-{pid}" for pid in range(os.getpid(), os.getpid() + 200)):
        (tmp_path / part).symlink_to(victim)  # for an attacker who could guess it
    run("export", "hits", tmp_path / f"hits.{ending}")
    assert victim.read_text() == "as it was"
    assert (tmp_path / f"hits.{ending}").stat().st_size > 0


def mode_of(path):
    return stat.S_IMODE(Path(path).stat().st_mode)


def test_exported_file_has_the_permissions_of_the_map(make, tmp_path):
    """A new file gets the map's permissions less the umask, as `cp` does; an existing file keeps
    its own."""
    make("own").close()
    make("common", mode=0o664).close()
    make("open", mode=0o666).close()
    before = os.umask(0o022)
    try:
        for name, mode in (("own", 0o600), ("common", 0o644), ("open", 0o644)):
            run("export", name, tmp_path / f"{name}.snap")
            assert mode_of(tmp_path / f"{name}.snap") == mode
        (tmp_path / "own.snap").chmod(0o640)
        run("export", "own", tmp_path / "own.snap")
        assert mode_of(tmp_path / "own.snap") == 0o640
    finally:
        os.umask(before)


def test_export_to_a_pipe_writes_into_the_pipe(hits, tmp_path):
    """A path that is not a regular file, such as a shell's >(...), is written to and not
    replaced."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    run("export", "hits", path, "--format", "csv")
    assert os.read(reader, 1 << 16).startswith(b"key,value")
    os.close(reader)
    assert stat.S_ISFIFO(path.stat().st_mode)


def test_metrics_follow_no_link_at_their_temporary_name(hits, tmp_path):
    pytest.importorskip("prometheus_client")
    victim = tmp_path / "victim"
    victim.write_text("as it was")
    run("metrics", "-o", tmp_path / "hits.prom")
    assert 'map="hits"' in (tmp_path / "hits.prom").read_text()
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["hits.prom", "victim"]
    assert victim.read_text() == "as it was"
