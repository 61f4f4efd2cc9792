"""Put tests/crash, with the single-stepping driver, on the path before anything here needs it."""

import bases  # noqa: F401
