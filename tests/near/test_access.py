"""Near caches use the settings of the client: TLS, the names of nodes, users and their rights."""

import contextlib
import subprocess

import pytest

redis = pytest.importorskip("redis", reason="the client redis is not installed")

# ruff: noqa: E402 (after the skip)
from support import near_cluster, near_servers
from support.waiting import until

from shmrhash import NearCache

PROGRAMS = near_servers.programs()
pytestmark = pytest.mark.skipif(not PROGRAMS, reason="no server of Redis or Valkey is installed")
STALE = 0.4
PATIENCE_S = 60
KEYS = [f"k{number}" for number in range(12)]  # in slots of all primaries
# The rights that docs/howto/near_cache.md lists, and those for the commands of these tests.
RIGHTS = ["-@all", "+hello", "+select", "+ping", "+get", "+pttl", "+set", "+del"]
OF_SERVER = [*RIGHTS, "+client|tracking", "+info", "+role"]
OF_CLUSTER = [*RIGHTS, "+client|tracking", "+info", "+cluster|nodes", "+cluster|slots", "+asking"]
OF_CLIENT = ["+command", "+cluster"]  # commands that redis-py's cluster client sends by itself


def near_of(client, name, **options):
    sizes = {"max_entries": 2000, "max_bytes": 1 << 21}
    return NearCache(client, ["k"], name=name, max_stale=STALE, **(sizes | options))


def user_of(server, rights, **more):
    """Return a client that logs in as a user with these rights."""
    with redis.Redis(unix_socket_path=server.path) as client:
        client.execute_command("ACL", "SETUSER", "app", "on", ">secret", "~k*", *rights)
    settings = {"username": "app", "password": "secret"} | more
    return redis.Redis(unix_socket_path=server.path, **settings)


def hits_and_changes(near, client):
    """Assert that values are kept, and that the near cache learns of changes."""
    for key in KEYS:
        client.set(key, "one")
    until(lambda: near.get_many(KEYS) == dict.fromkeys(KEYS, b"one"))

    def asks_nobody():
        before = near.info()["entries"]["misses"]
        return len(near.get_many(KEYS)) == len(KEYS) and near.info()["entries"]["misses"] == before

    until(asks_nobody)
    for key in KEYS:
        client.set(key, "two")
    until(lambda: near.get_many(KEYS) == dict.fromkeys(KEYS, b"two"))


def test_a_user_with_the_rights_of_the_guide_is_told_of_changes(server, map_name, client):
    with user_of(server, OF_SERVER) as theirs, near_of(theirs, map_name) as near:
        assert near.ready(PATIENCE_S)
        assert near.info()["tracking"] == "bcast"
        hits_and_changes(near, client)
        assert near.set("k1", b"own")
        assert near.get("k1") == b"own"


@pytest.mark.parametrize("missing", ["client|tracking", "info"])
def test_a_user_who_may_not_track_keeps_values_for_their_ttl_and_says_so(
    server, map_name, client, missing
):
    rights = [*OF_SERVER, f"-{missing}"]
    client.set("k1", "one")
    with user_of(server, rights) as theirs, near_of(theirs, map_name) as near:
        assert near.info()["tracking"] == "ttl"
        assert f"+{missing}" in near.info()["refusal"]
        assert near.get("k1") == b"one"
        client.set("k1", "two")
        until(lambda: near.get("k1") == b"two")


def test_a_wrong_password_is_the_clients_error_and_leaves_nothing(server, map_name):
    with (
        user_of(server, OF_SERVER, password="wrong") as theirs,
        pytest.raises(redis.exceptions.ResponseError, match="WRONGPASS"),
    ):
        near_of(theirs, map_name)


def test_rights_that_are_taken_away_end_the_watch_with_a_message(server, map_name, client):
    """The tracker loses its right and its connection, and its next one is refused; from then on
    values live for their ttl, and info() names the missing right."""
    with user_of(server, OF_SERVER) as theirs, near_of(theirs, map_name) as near:
        assert near.ready(PATIENCE_S)
        client.execute_command("ACL", "SETUSER", "app", "-client|tracking")
        for one in client.client_list():
            if "t" in one["flags"]:
                client.client_kill_filter(_id=one["id"])

        def is_refused():
            with contextlib.suppress(redis.exceptions.RedisError):
                near.get("k1")
            return near.info()["tracking"] == "ttl"

        until(is_refused)
        assert "+client|tracking" in near.info()["refusal"]
        client.set("k1", "two")
        until(lambda: near.get("k1") == b"two")


@pytest.fixture
def tls_cluster(tmp_path):
    if "redis" not in PROGRAMS:
        pytest.skip("no redis-server, which has TLS, is installed")
    try:
        certificate = near_cluster.Certificate(tmp_path)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no openssl to make a certificate with")
    made = near_cluster.Cluster(PROGRAMS["redis"], tmp_path, certificate)
    made.settings = {
        "host": "localhost", "port": made.nodes[0].port, "ssl": True,
        "ssl_ca_certs": certificate.path,
    }  # fmt: skip
    yield made
    made.close()


@pytest.mark.thorough
def test_a_cluster_over_tls_whose_nodes_have_names_and_users(tls_cluster, map_name):
    """The near cache knows the nodes by the names that they announce, because the certificates are
    for names."""
    for node in tls_cluster.nodes:
        words = "app", "on", ">secret", "~k*", *OF_CLUSTER, *OF_CLIENT
        node.ask("ACL", "SETUSER", *words)
        node.ask("ACL", "SETUSER", "mute", *words[1:], "-client|tracking")
    with redis.RedisCluster(**tls_cluster.settings) as client:
        user = tls_cluster.settings | {"username": "app", "password": "secret"}
        with redis.RedisCluster(**user) as theirs, near_of(theirs, map_name) as near:
            assert near.ready(PATIENCE_S)
            hits_and_changes(near, client)
            known = {f"localhost:{node.port}" for node in tls_cluster.primaries()}

            def named():
                return {each["server"] for each in near.info()["nodes"].values()}

            # A replica that was not known to be one may have a line, but was never asked.
            until(lambda: named() - {""} == known)
            tls_cluster.fail_over(tls_cluster.primaries()[0])
            tls_cluster.wait()
            until(lambda: near.age() < STALE)
            hits_and_changes(near, client)
        user["username"] = "mute"
        with redis.RedisCluster(**user) as theirs, near_of(theirs, map_name + "2") as near:
            assert near.info()["tracking"] == "ttl"
            assert "+client|tracking" in near.info()["refusal"]
            client.set("k1", "three")
            until(lambda: near.get("k1") == b"three")
