"""Servers and clients for the tests of near caches; a test is skipped where the server that it
needs is not installed."""

import pytest
from support import near_cluster, near_postgres, near_servers

PROGRAMS = near_servers.programs()


@pytest.fixture(params=PROGRAMS or ["none"])
def server(request, tmp_path):
    made = near_servers.Server(PROGRAMS[request.param], tmp_path)
    yield made
    made.close()


@pytest.fixture
def library():
    """The client's library, redis-py. test_clients.py uses others, too."""
    return pytest.importorskip("redis", reason="the client redis is not installed")


@pytest.fixture
def client(server, library):
    with near_servers.CLIENTS[library.__name__](library)(unix_socket_path=server.path) as made:
        yield made


@pytest.fixture(scope="module", params=near_servers.cluster_programs())
def shared_cluster(request, tmp_path_factory):
    made = near_cluster.Cluster(PROGRAMS[request.param], tmp_path_factory.mktemp("cluster"))
    yield made
    made.close()


@pytest.fixture
def cluster(shared_cluster):
    """A healthy cluster, without keys."""
    shared_cluster.heal()
    return shared_cluster


@pytest.fixture(scope="session")
def started_postgres():
    """A server of PostgreSQL for all tests of a worker, because starting one takes a second."""
    made = near_postgres.Server()
    yield made
    made.close()


@pytest.fixture
def postgres(started_postgres):
    """That server, with an empty table `items`."""
    near_postgres.make_table(started_postgres)
    return started_postgres


@pytest.fixture
def sql(postgres):
    with postgres.connect() as made:
        yield made


@pytest.fixture
def pg_near(postgres, map_name):
    with near_postgres.near_of(postgres, map_name) as made:
        assert made.ready(near_postgres.PATIENCE_S)
        yield made
