"""A cluster of six servers on the loopback interface for tests of near caches: three primaries and
three replicas.

The cluster is made by the commands ADDSLOTSRANGE, MEET and REPLICATE; the servers know each other
by 127.0.0.1. The ports are free ones for which the port 10,000 above, the nodes' own, is free as
well.
"""

import contextlib
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

from shmrhash._near.clusterwatch import Watch

NODE_TIMEOUT_MS = 1500
PATIENCE_S = 60
AGREEMENT_S = 6
SLOTS = 1 << 14


def free_ports(count):
    """Return free ports for which the port 10,000 above is free, too."""
    found, held = [], []
    try:
        while len(found) < count:
            first, second = socket.socket(), socket.socket()
            held += [first, second]
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            if port + 10_000 < 1 << 16:
                with contextlib.suppress(OSError):
                    second.bind(("127.0.0.1", port + 10_000))
                    found.append(port)
    finally:
        for each in held:
            each.close()
    return found


def read_the_topology_once(monkeypatch):
    """Put a mutant in the place of the watch: it takes each primary's first view of the slots for
    final, and asks no other primary."""
    right = Watch._compare

    def compare(self, primary, view):
        if primary.right is None:
            right(self, primary, view)

    monkeypatch.setattr(Watch, "_compare", compare)
    monkeypatch.setattr(Watch, "_is_believed", lambda self, primary: True)


def until(condition, what):
    """Wait until a condition holds; it may raise while a server does not answer yet."""
    import redis

    deadline = time.monotonic() + PATIENCE_S
    while True:
        with contextlib.suppress(redis.exceptions.RedisError):
            if condition():
                return
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


class Process:
    """A server on a port, and a connection to it for the test. The connection uses TLS if the
    options say so; then the server's certificate is for localhost, and is the CA's as well."""

    def __init__(self, program, folder, *options):
        import redis

        tls = "--tls-port" in options
        self.port = int(options[options.index("--tls-port" if tls else "--port") + 1])
        self.command = [program, *options]
        self.folder = Path(folder)
        kind, more = redis.Connection, {}
        if tls:
            trusted = options[options.index("--tls-cert-file") + 1]
            kind, more = redis.SSLConnection, {"host": "localhost", "ssl_ca_certs": trusted}
        self.connection = kind(port=self.port, socket_timeout=5, protocol=2, **more)
        self.process = None
        self.start()

    def start(self):
        with open(self.folder / f"log-{self.port}", "ab") as log:
            self.process = subprocess.Popen(self.command, cwd=self.folder, stdout=log, stderr=log)
        until(lambda: self.ask("PING"), "a server does not start")

    def ask(self, *words):
        """Send a command to this server, and return the answer as it comes."""
        try:
            self.connection.send_command(*words)
            return self.connection.read_response()
        except OSError:
            self.connection.disconnect()
            raise

    def is_primary(self):
        return self.ask("ROLE")[0] == b"master"

    def signal(self, number):
        os.kill(self.process.pid, number)

    def is_alive(self):
        return self.process.poll() is None

    def kill(self):
        self.signal(signal.SIGKILL)
        self.process.wait()
        self.connection.disconnect()

    def close(self):
        if self.is_alive():
            self.kill()


class Node(Process):
    """A server of the cluster. more: further options of it."""

    def __init__(self, program, folder, port, more=()):
        Path(folder).mkdir()
        options = {
            "port": port, "bind": "127.0.0.1", "dir": folder, "save": "", "appendonly": "no",
            "cluster-enabled": "yes", "cluster-node-timeout": NODE_TIMEOUT_MS,
            "cluster-announce-ip": "127.0.0.1", "cluster-replica-validity-factor": 0,
            "repl-diskless-sync-delay": 0, **dict(more),
        }  # fmt: skip
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        super().__init__(program, folder, *words)
        self.id = self.ask("CLUSTER", "MYID").decode()

    def lines(self):
        """Return the nodes as this one sees them: for each the words of its line of CLUSTER
        NODES."""
        return [line.split() for line in self.ask("CLUSTER", "NODES").decode().splitlines()]

    def owners(self):
        """Return which node owns which slots, as this one sees it."""
        return {
            line[0]: " ".join(line[8:]).partition(" [")[0]
            for line in self.lines()
            if "master" in line[2] and line[8:]
        }

    def is_well(self):
        """Return whether this node answers for its slots, or follows its primary."""
        role = self.ask("ROLE")
        return b"cluster_state:ok" in self.ask("CLUSTER", "INFO") and (
            role[0] == b"master" or role[3] == b"connected"
        )


class Certificate:
    """A certificate for localhost and for 127.0.0.1, into which redis-py turns the name. It is
    signed by itself.

    Raises OSError (no openssl), CalledProcessError.
    """

    def __init__(self, folder):
        self.key, self.path = f"{folder}/key.pem", f"{folder}/certificate.pem"
        subprocess.run(
            [
                "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj",
                "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
                "-keyout", self.key, "-out", self.path,
            ],
            capture_output=True,
            check=True,
        )  # fmt: skip

    def options(self, port):
        """Return the options of a node that uses only TLS, with other nodes and with clients, which
        know it by its name."""
        return {
            "port": 0, "tls-port": port, "tls-cluster": "yes", "tls-replication": "yes",
            "tls-cert-file": self.path, "tls-key-file": self.key, "tls-ca-cert-file": self.path,
            "tls-auth-clients": "no", "cluster-announce-hostname": "localhost",
            "cluster-preferred-endpoint-type": "hostname",
        }  # fmt: skip


class Cluster:
    """A cluster of three primaries and a replica of each."""

    def __init__(self, program, folder, certificate=None):
        self.program, self.folder = program, Path(folder)
        self.nodes = []
        for port in free_ports(6):
            more = {} if certificate is None else certificate.options(port)
            self.nodes.append(Node(program, self.folder / str(port), port, more))
        for number, node in enumerate(self.nodes[:3]):
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            first, end = number * SLOTS // 3, (number + 1) * SLOTS // 3
            for slots in range(first, end, 512):  # servers before Redis 7 lack ADDSLOTSRANGE
                node.ask("CLUSTER", "ADDSLOTS", *range(slots, min(end, slots + 512)))
        for node in self.nodes[1:]:
            self.introduce(node)
        for primary, replica in zip(self.nodes[:3], self.nodes[3:], strict=True):
            replica.ask("CLUSTER", "REPLICATE", primary.id)
        self.wait()

    def introduce(self, node):
        """Make the node a member of which all nodes know."""
        node.ask("CLUSTER", "MEET", "127.0.0.1", self.nodes[0].port)
        count = self.nodes.index(node) + 1
        met = self.nodes[:count]
        until(lambda: all(len(each.lines()) == count for each in met), "nodes do not meet")
        until(lambda: "handshake" not in str([each.lines() for each in met]), "a handshake")

    def living(self):
        return [node for node in self.nodes if node.is_alive()]

    def wait(self):
        """Wait until the living nodes agree, and the replicas follow their primaries."""
        until(lambda: all(node.is_well() for node in self.living()), "the cluster is not well")
        until(
            lambda: len({str(sorted(node.owners().items())) for node in self.living()}) == 1,
            "the nodes do not agree",
        )

    def primaries(self):
        """Return the living owners of slots, as the first living node sees it."""
        owners = self.living()[0].owners()
        return [node for node in self.living() if node.id in owners]

    def agrees_on_epoch(self, node):
        """Return whether this node has the greatest epoch, and all know it. All must also know
        which nodes are replicas, because one that is not known as a replica has an epoch of its
        own, which may still rise."""
        views = [each.lines() for each in self.living()]
        if any("master" in line[2] and not line[8:] for view in views for line in view):
            return False
        seen = [{line[0]: int(line[6]) for line in view} for view in views]
        own = next(int(line[6]) for line in node.lines() if "myself" in line[2])
        return all(max(epochs.values()) == epochs.get(node.id) == own for epochs in seen)

    def node(self, ident):
        (found,) = [node for node in self.nodes if node.id == ident]
        return found

    def owner(self, slot):
        """Return the primary that says that it owns the slot."""
        for node in self.living():
            slots = node.owners().get(node.id, "").split()
            for word in slots:
                first, _, last = word.partition("-")
                if int(first) <= slot <= int(last or first):
                    return node
        raise LookupError(slot)

    def replica(self, primary):
        """Return a living replica of this primary, or None."""
        for node in self.living():
            role = node.ask("ROLE")
            if role[0] == b"slave" and role[2] == primary.port:
                return node
        return None

    def client(self, **options):
        import redis

        options = {"socket_timeout": 5} | options
        return redis.RedisCluster("127.0.0.1", self.nodes[0].port, **options)

    def move_slot(self, slot, target):
        """Move a slot with its keys while clients use it, as redis-cli --cluster reshard does."""
        source = self.owner(slot)
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)
        self.move_keys(slot, source, target)
        for node in (target, source):
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", target.id)

    def move_keys(self, slot, source, target):
        while keys := source.ask("CLUSTER", "GETKEYSINSLOT", slot, 100):
            source.ask("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)

    def fail_over(self, primary):
        """Make the replica the primary, by an agreement of both."""
        replica = self.replica(primary)
        asked = 0.0

        def is_primary():
            nonlocal asked
            if time.monotonic() - asked > AGREEMENT_S:  # the replica gives up after 5 seconds
                asked = time.monotonic()
                replica.ask("CLUSTER", "FAILOVER")
            return replica.is_primary()

        until(is_primary, "the replica does not take over")
        return replica

    def heal(self):
        """Start or continue every node, wait until they agree, and delete all keys."""
        for node in self.nodes:
            if not node.is_alive():
                node.start()
            node.signal(signal.SIGCONT)
        self.wait()
        for node in self.primaries():
            node.ask("FLUSHALL")

    def close(self):
        for node in self.nodes:
            node.close()
