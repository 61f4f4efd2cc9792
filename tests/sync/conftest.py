"""The space that the tests of lock primitives use."""

import pytest

from shmrhash import Sync


@pytest.fixture
def space(map_name):
    """A space. The test ends with check(), close() and unlink() on it."""
    made = Sync(map_name)
    yield made
    if not made.closed:
        made.check()
    made.close()
    made.unlink()
