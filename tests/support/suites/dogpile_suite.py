"""The tests of dogpile.testing for backends, which come with the package and not in an archive."""

import json
import os

from dogpile.testing import fixtures

import shmrhash.dogpile  # noqa: F401  registers the backend


class TestBackend(fixtures._GenericBackendTestSuite):
    backend = "shmrhash"
    config_args = {"arguments": {"name": os.environ["SUITE_CACHE"]}}  # noqa: RUF012


class TestMutex(fixtures._GenericMutexTestSuite):
    backend = "shmrhash"
    config_args = {"arguments": {"name": os.environ["SUITE_CACHE"]}}  # noqa: RUF012


class TestSerializer(fixtures._GenericSerializerTestSuite, TestBackend):
    region_args = {  # noqa: RUF012
        "serializer": lambda value: json.dumps(value).encode(),
        "deserializer": json.loads,
    }
