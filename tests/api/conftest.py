"""What the tests of waiting share."""

import pytest
from support.waiting import HOURS_NS

from shmrhash import _core


@pytest.fixture
def slices_off():
    """Waiters do not look by themselves: a wake-up that is lost ends a test by its timeout."""
    before = _core.set_wait_slice(HOURS_NS)
    yield
    _core.set_wait_slice(before)
