"""The space that threads share."""

import pytest

from shmrhash import Sync


@pytest.fixture
def space(map_name):
    made = Sync(map_name)
    yield made
    made.check()
    made.close()
    made.unlink()
