"""RedisSource with servers of Redis and Valkey: fetches, changes, proofs, and servers that fail."""

import asyncio
import os
import signal
import ssl
import subprocess
import threading
import time

import pytest

redis = pytest.importorskip("redis", reason="the client redis is not installed")

# ruff: noqa: E402 (after the skip)
from support import near_servers
from support.children import in_child
from support.waiting import until

from shmrhash import _core
from shmrhash._errors import InvalidArgument, TrackingRefused
from shmrhash._near.redis import RedisSource

PROGRAMS = near_servers.programs()
pytestmark = pytest.mark.skipif(not PROGRAMS, reason="no server of Redis or Valkey is installed")
BEAT = 0.05
PATIENCE_S = 20


class Numbers:
    def __init__(self):
        self.known = []

    def number(self, identity):
        if identity not in self.known:
            self.known.append(identity)
        return self.known.index(identity)


class Recorder:
    """A sink that records its calls and the moment of each proof, and that ends the watch when the
    test asks for it."""

    def __init__(self, source):
        self.told = []
        self.error = None
        self.ended = False
        self.proofs = 0
        self.moment = 0
        self.thread = threading.Thread(target=self.run, args=(source,))
        self.thread.start()

    def run(self, source):
        try:
            source.watch(self, lambda: self.ended, BEAT)
        except Exception as error:
            self.error = error

    def began(self, node):
        self.told.append(("began", node))

    def changed(self, node, keys):
        self.told += [("changed", bytes(key)) for key in keys]

    def everything(self, node):
        self.told.append(("everything", node))

    def proved(self, node, moment_ns):
        assert moment_ns >= self.moment, "a proof that goes back"
        self.moment = moment_ns
        self.proofs += 1

    def lost(self, node):
        self.told.append(("lost", node))

    def wait(self, condition):
        until(condition, lambda: (self.told, self.error))

    def wait_for(self, *what):
        self.wait(lambda: what in self.told)

    def wait_for_proofs(self, count):
        wanted = self.proofs + count
        self.wait(lambda: self.proofs >= wanted)

    def end(self):
        self.ended = True
        self.thread.join(PATIENCE_S)
        assert not self.thread.is_alive()


def made_source(client, prefixes=("k",)):
    source = RedisSource(client, prefixes)
    source.attach(Numbers())
    return source


@pytest.fixture
def source(client):
    made = made_source(client)
    yield made
    made.close()


@pytest.fixture
def recorder(source):
    made = Recorder(source)
    made.wait_for_proofs(2)
    yield made
    made.end()


# ---- reading and writing ----


def test_values_come_with_their_time_to_live(client, source):
    client.set("k1", b"one")
    client.set("k2", b"two", px=60_000)
    client.set("k3", b"")
    (one, two, three, four) = source.fetch([b"k1", b"k2", b"k3", b"k4"])
    assert (one.value, one.ttl) == (b"one", None)
    assert two.value == b"two"
    assert 50 < two.ttl <= 60
    assert (three.value, three.ttl) == (b"", None)
    assert (four.value, four.ttl) == (None, None)
    assert {each.node for each in (one, two, three, four)} == {0} == {source.node_of(b"k1")}


def test_coroutines_read_and_write_the_same(server, client):
    async def work(source):
        assert await source.aset(b"k1", b"one", 60)
        assert not await source.aset(b"k1", b"two", None, nx=True)
        assert await source.aset(b"k1", b"three", None, xx=True)
        answers = await asyncio.gather(*(source.afetch([b"k1", b"k2"]) for _ in range(20)))
        assert await source.adelete([b"k1", b"k2"]) == 1
        assert source.set(b"k5", b"five", None), "also without await"
        source.close()
        return answers

    async def with_async_client():
        async with redis.asyncio.Redis(unix_socket_path=server.path) as theirs:
            return await work(made_source(theirs))

    for answers in (asyncio.run(with_async_client()), asyncio.run(work(made_source(client)))):
        for one, two in answers:
            assert (one.value, two.value, one.node) == (b"three", None, 0)
    assert client.get("k5") == b"five"


def test_writes_are_the_clients(client, source):
    assert source.set(b"k1", b"one", 60)
    assert 50 < client.pttl("k1") / 1000 <= 60
    assert not source.set(b"k1", b"two", None, nx=True)
    assert not source.set(b"k2", b"two", None, xx=True)
    assert source.set(b"k1", b"two", None, xx=True)
    assert client.get("k1") == b"two"
    assert client.ttl("k1") == -1
    assert source.delete([b"k1", b"k2"]) == 1
    assert source.delete([]) == 0
    with pytest.raises(InvalidArgument):
        source.set(b"k1", b"", None, nx=True, xx=True)


def test_a_value_of_another_type_is_the_clients_error(client, source):
    client.rpush("k1", "item")
    with pytest.raises(redis.exceptions.ResponseError, match="WRONGTYPE"):
        source.fetch([b"k1"])
    client.set("k2", "good")
    assert source.fetch([b"k2"])[0].value == b"good"


def test_a_connection_that_the_server_closed_is_made_anew(client, source):
    client.set("k1", "one")
    for _ in range(3):
        assert source.fetch([b"k1"])[0].value == b"one"
        client.client_kill_filter(_type="normal", skipme=True)


def test_a_silent_server_is_a_timeout_and_its_late_answer_is_dropped(server):
    with redis.Redis(unix_socket_path=server.path, socket_timeout=0.2) as client:
        source = made_source(client)
        client.set("k1", "one")
        client.set("k2", "two")
        assert source.fetch([b"k1"])[0].value == b"one"
        server.signal(signal.SIGSTOP)
        try:
            with pytest.raises(redis.exceptions.TimeoutError):
                source.fetch([b"k1"])
        finally:
            server.signal(signal.SIGCONT)
        assert source.fetch([b"k2"])[0].value == b"two"
        source.close()


def test_a_dead_server_is_the_clients_error_until_it_is_back(server, source):
    source.fetch([b"k1"])
    server.kill()
    with pytest.raises(redis.exceptions.ConnectionError):
        source.fetch([b"k1"])
    server.start()
    (answer,) = source.fetch([b"k1"])
    assert (answer.value, answer.node) == (None, 1), "another run of the server is another node"


def test_a_child_of_fork_has_connections_of_its_own(client, source):
    client.set("k1", "one")
    client.set("k2", "two")
    assert source.fetch([b"k1"])[0].value == b"one"
    before = len(client.client_list())
    assert in_child(lambda: (source.fetch([b"k2"])[0].value, os.getpid()))[0] == b"two"
    assert source.fetch([b"k1"])[0].value == b"one"
    assert len(client.client_list()) <= before + 1


# ---- watching ----


def test_changes_below_the_prefixes_are_told(client, recorder):
    client.set("k1", "one")
    client.set("other", "x")
    client.expire("k1", 100)
    client.delete("k1", "k7")
    recorder.wait(lambda: recorder.told.count(("changed", b"k1")) >= 3)
    assert recorder.told[0] == ("began", 0)
    assert ("changed", b"other") not in recorder.told
    assert ("changed", b"k7") not in recorder.told


def test_changes_in_a_transaction_a_script_and_by_expiry_are_told(client, recorder):
    with client.pipeline(transaction=True) as pipe:
        pipe.set("k1", 1).set("k2", 2).execute()
    client.eval("redis.call('set', KEYS[1], 'x')", 1, "k3")
    client.set("k4", "soon", px=20)
    for key in (b"k1", b"k2", b"k3"):
        recorder.wait_for("changed", key)
    recorder.wait(lambda: recorder.told.count(("changed", b"k4")) >= 2)


def test_flushes_are_told_whatever_database(server, client, recorder):
    client.flushall()
    recorder.wait_for("everything", 0)
    recorder.told.clear()
    with redis.Redis(unix_socket_path=server.path, db=3) as other:
        other.flushdb()
    recorder.wait_for("everything", 0)


def test_a_proof_covers_every_change_that_was_executed_before_its_moment(client, recorder):
    """Promise (b) of a source: while writers never pause, each change that was executed before the
    moment of a proof is told before that proof."""
    for number in range(300):
        key = b"k%d" % number
        client.set(key, number)
        answered = _core.clock_monotonic_ns()
        recorder.wait(lambda: recorder.moment >= answered)  # noqa: B023 (called at once)
        assert ("changed", key) in recorder.told


def test_a_lost_connection_ends_the_watch(client, source, recorder):
    (tracker,) = [one for one in client.client_list() if "t" in one["flags"]]
    client.client_kill_filter(_id=tracker["id"])
    recorder.thread.join(PATIENCE_S)
    assert isinstance(recorder.error, ConnectionError)
    assert recorder.told[-1] == ("lost", 0)
    again = Recorder(source)
    again.wait_for_proofs(1)
    again.end()
    assert again.told == [("began", 0), ("lost", 0)]


def test_a_stopped_server_proves_nothing_and_ends_the_watch(server, recorder):
    server.signal(signal.SIGSTOP)
    try:
        recorder.thread.join(PATIENCE_S)
        stopped = time.monotonic_ns()
        assert not recorder.thread.is_alive()
        assert recorder.moment < stopped
    finally:
        server.signal(signal.SIGCONT)
    assert recorder.error is not None
    assert recorder.told[-1] == ("lost", 0)


def test_a_server_is_not_believed_while_it_is_paused(client, recorder):
    client.execute_command("CLIENT", "PAUSE", 3 * int(BEAT * 1000), "WRITE")
    recorder.wait_for_proofs(3)
    client.execute_command("CLIENT", "UNPAUSE")
    client.set("k1", 1)
    recorder.wait_for("changed", b"k1")


def test_a_server_that_becomes_a_replica_is_not_watched(server, tmp_path, client, recorder):
    client.execute_command("REPLICAOF", "127.0.0.1", "1")
    recorder.thread.join(PATIENCE_S)
    assert "is a replica" in str(recorder.error)
    assert ("everything", 0) in recorder.told
    client.execute_command("REPLICAOF", "NO", "ONE")


def test_one_connection_tracks_and_the_server_has_no_table(client, source, recorder):
    client.set("k1", 1)
    for _ in range(50):
        source.fetch([b"k1"])
    info = client.info("stats")
    assert info["tracking_total_items"] == info["tracking_total_keys"] == 0
    assert info["tracking_total_prefixes"] == 1
    assert sum("t" in one["flags"] for one in client.client_list()) == 1


# ---- what a server allows ----


def test_probing_says_what_the_server_is(source):
    probe = source.probe()
    assert probe.tracking
    assert probe.server.startswith(("redis ", "valkey "))
    assert 0 < probe.round_trip < PATIENCE_S


def test_a_user_who_may_not_track_is_refused_with_the_remedy(server, client):
    client.acl_setuser(
        "app", enabled=True, passwords=["+secret"], keys=["*"],
        commands=["+@all", "-client|tracking"],
    )  # fmt: skip
    with redis.Redis(unix_socket_path=server.path, username="app", password="secret") as theirs:
        source = made_source(theirs)
        probe = source.probe()
        assert not probe.tracking
        assert "ACL SETUSER" in probe.reason
        assert "tracking='ttl'" in probe.reason
        assert "secret" not in source.name
        with pytest.raises(TrackingRefused, match="CLIENT TRACKING"):
            source.watch(None, lambda: True, BEAT)
        assert source.fetch([b"k1"])[0].value is None
        source.close()


def test_a_wrong_password_is_the_clients_error(server):
    with (
        redis.Redis(unix_socket_path=server.path, username="x", password="y") as theirs,
        pytest.raises(redis.exceptions.ResponseError, match="WRONGPASS"),
    ):
        made_source(theirs).probe()


@pytest.mark.parametrize("prefixes", [(), "user:", ["a", "ab"], ["", "a"], ["a", "a"]])
def test_prefixes_that_cannot_be_are_refused(prefixes):
    with pytest.raises(InvalidArgument, match="prefix"):
        RedisSource("redis://localhost", prefixes)


def test_a_client_without_settings_is_refused():
    with pytest.raises(InvalidArgument, match="for ClusterSource"):
        RedisSource(object(), ["k"])


def test_all_keys_are_one_prefix(client):
    source = made_source(client, [""])
    recorder = Recorder(source)
    recorder.wait_for_proofs(1)
    client.set("anything", 1)
    recorder.wait_for("changed", b"anything")
    recorder.end()
    assert source.covers(b"x")
    source.close()


async def fetch_and_close(source, value):
    assert (await source.afetch([b"k1"]))[0].value == value
    source.close()


def test_tls_by_the_clients_settings(tmp_path):
    program = PROGRAMS.get("redis") or next(iter(PROGRAMS.values()))
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj",
            "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out",
            certificate,
        ],
        capture_output=True,
    )  # fmt: skip
    if made.returncode:
        pytest.skip("no openssl to make a certificate with")
    port = 20_000 + os.getpid() % 20_000
    options = ["--tls-port", port, "--tls-cert-file", key.with_name("certificate.pem")]
    options += ["--tls-key-file", key, "--tls-auth-clients", "no"]
    server = near_servers.Server(program, tmp_path, *map(str, options))
    try:
        with redis.Redis(
            host="localhost", port=port, ssl=True, ssl_ca_certs=str(certificate)
        ) as client:
            source = made_source(client)
            client.set("k1", "one")
            assert source.fetch([b"k1"])[0].value == b"one"
            asyncio.run(fetch_and_close(made_source(client), b"one"))
            recorder = Recorder(source)
            recorder.wait_for_proofs(2)
            client.set("k1", "two")
            recorder.wait_for("changed", b"k1")
            recorder.end()
            source.close()
        with (
            redis.Redis(host="localhost", port=port, ssl=True) as client,
            pytest.raises((redis.exceptions.ConnectionError, ssl.SSLError)),
        ):
            made_source(client).fetch([b"k1"])
    finally:
        server.close()
