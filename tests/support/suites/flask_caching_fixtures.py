# This is added to the end of Flask-Caching's tests/conftest.py; all its tests use ShmCache.
import os

import flask
import pytest

from shmrhash.cachelib import ShmCache


def shm_cache(app, config, args, kwargs):
    return ShmCache(os.environ["SUITE_CACHE"], *args, **kwargs)


@pytest.fixture(name="app")
def app_with_shm_cache(request):
    app = flask.Flask(request.module.__name__, template_folder=os.path.dirname(__file__))
    app.testing = True
    app.config["CACHE_TYPE"] = "conftest.shm_cache"
    shm_cache(app, app.config, [], {}).clear()
    return app


class ShmClock:
    """A clock for a cache: when it advances, the deadline of each entry comes nearer."""

    def advance(self, seconds):
        shm = shm_cache(None, None, [], {}).shm
        for key in list(shm._entries(0)):
            left = shm.ttl(key)
            if left is not None and left <= seconds:
                shm.delete(key)
            elif left is not None:
                shm.touch(key, left - seconds)


@pytest.fixture(name="clock")
def shm_clock():
    return ShmClock()
