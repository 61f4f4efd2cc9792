"""Servers of Redis and Valkey, and a client, for tests that are skipped where either is absent."""

import pytest
from support import near_servers

PROGRAMS = near_servers.programs()


@pytest.fixture(params=PROGRAMS or ["none"])
def server(request, tmp_path):
    made = near_servers.Server(PROGRAMS[request.param], tmp_path)
    yield made
    made.close()


@pytest.fixture
def client(server):
    import redis

    with redis.Redis(unix_socket_path=server.path) as made:
        yield made
