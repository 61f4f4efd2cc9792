"""`shmrhash near`: a process that is the tracker, so that no worker has to be, and that fetches
keys."""

import contextlib
import json
import signal
import subprocess

import pytest

redis = pytest.importorskip("redis", reason="the client redis is not installed")
pytest.importorskip("click", reason="the command line is not installed")

# ruff: noqa: E402 (after the skip)
from support import near_servers
from support.commandline import COMMAND, FOLDER

import shmrhash
from shmrhash import NearCache

pytestmark = pytest.mark.skipif(
    not near_servers.programs(), reason="no server of Redis or Valkey is installed"
)
PATIENCE_S = 60
SIZES = ("--max-entries", "2000", "--max-bytes", str(1 << 21))


@contextlib.contextmanager
def running(*words):
    """Run the command until the block ends; `lines` receives its output."""
    command = [*COMMAND, *map(str, words)]
    with subprocess.Popen(command, cwd=FOLDER, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            shmrhash.gc()


@pytest.fixture
def near(server, map_name):
    made = NearCache(
        redis.Redis(unix_socket_path=server.path), ["k"], name=map_name, track=False,
        max_entries=2000, max_bytes=1 << 21,
    )  # fmt: skip
    with made:
        yield made


def test_it_tracks_for_the_workers_and_fetches_the_keys_of_a_file(
    server, client, near, map_name, tmp_path
):
    keys = [f"k{number}" for number in range(200)]
    client.mset(dict.fromkeys(keys, "one"))
    (tmp_path / "keys").write_text("\n".join([*keys, "", "other"]) + "\n")
    words = (server.url, "--prefix", "k", "--name", map_name, *SIZES)
    with running("near", *words, "--warm", tmp_path / "keys") as process:
        assert process.stdout.readline().rstrip().endswith("this process tracks")
        assert process.stdout.readline() == "200 keys fetched\n"
        assert near.info()["tracker_pid"] == process.pid
        gets = client.info("commandstats")["cmdstat_get"]["calls"]
        assert near.get_many(keys) == dict.fromkeys(keys, b"one")
        assert client.info("commandstats")["cmdstat_get"]["calls"] == gets
        with running("-j", "near", *words) as another:
            found = json.loads(another.stdout.readline())
            assert (found["tracker_pid"], found["tracks_here"]) == (process.pid, False)
            another.send_signal(signal.SIGINT)
            assert another.wait(PATIENCE_S) == 0
        process.terminate()
        assert process.wait(PATIENCE_S) == 0


@pytest.mark.thorough
def test_its_segment_has_the_name_that_workers_give_it_with_the_same_settings(server):
    with running("near", server.url, "--prefix", "k", "--value", "str", *SIZES) as process:
        name = process.stdout.readline().partition(":")[0]
        sizes = {"max_entries": 2000, "max_bytes": 1 << 21}
        with NearCache(server.url, ["k"], value=str, track=False, **sizes) as near:
            assert near.info()["name"] == name
            assert near.info()["tracker_pid"] == process.pid


@pytest.mark.thorough
def test_command_ends_with_a_message_if_the_server_refuses(server, client):
    client.execute_command("ACL", "SETUSER", "default", "-client|tracking")
    with running("near", server.url, "--prefix", "k", *SIZES) as process:
        assert "not tracked: the server refuses" in process.stdout.readline()
        assert process.wait(PATIENCE_S) == 1


@pytest.mark.thorough
def test_impossible_arguments_are_refused_with_a_message(tmp_path):
    for words, status in [
        (("nonsense://x", "--prefix", "k"), 2),
        (("redis://localhost", "--prefix", "k", "--prefix", "ka"), 2),
        (("redis://localhost:1", "--cluster", "--prefix", "k"), 9),
    ]:
        done = subprocess.run(
            [*COMMAND, "near", *words], cwd=FOLDER, capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, done.stdout) == (status, "")
        assert done.stderr.startswith("Error: ")
