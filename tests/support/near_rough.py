"""A source over Redis or Valkey whose answers are late, and whose watch stops and breaks at
random."""

import random
import time

from shmrhash._near.redis import RedisSource
from shmrhash._near.resp import Push

STUMBLES = 60  # in one of so many steps of a watch its thread stops
CUTS = 300  # in one of so many steps the connection is cut


class RoughConnection:
    """A tracker's connection on which answers overtake the server's messages of changes as far as
    they may, whose thread stops at the worst moments, and which breaks."""

    def __init__(self, connection, chance, max_stale):
        self.connection = connection
        self.chance = chance
        self.max_stale = max_stale
        self.overtakes = chance.random() < 0.5
        self.held = []

    def __getattr__(self, name):
        return getattr(self.connection, name)

    def stumble(self):
        if self.chance.random() < 1 / STUMBLES:
            time.sleep(self.chance.random() * 2.5 * self.max_stale)
        elif self.chance.random() < 1 / CUTS:
            raise ConnectionResetError("the test has cut the connection")

    def send(self, data):
        self.stumble()
        self.connection.send(data)

    def receive(self):
        for reply in self.connection.receive():
            if self.overtakes and isinstance(reply, Push):
                # The server may as well have sent this message behind the next answer, because
                # the change came after the question before that one (redis.py).
                self.held.append(reply)
                continue
            yield reply
            self.stumble()
            while self.held:
                yield self.held.pop(0)


class RoughSource(RedisSource):
    """A source whose answers are late and whose watch is rough."""

    def __init__(self, client, prefix, plan, seed):
        super().__init__(client, [prefix])
        self.plan = plan
        self.chance = random.Random(seed)

    def probe(self):
        # On a busy machine a server may be too slow for max_stale, which costs only hits.
        return super().probe()._replace(round_trip=0.0)

    def fetch(self, keys):
        answers = super().fetch(keys)
        if self.chance.random() < 0.5:
            time.sleep(self.chance.random() * self.plan.delay)
        return answers

    def _watch_on(self, connection, *others):
        rough = RoughConnection(connection, self.chance, self.plan.max_stale)
        super()._watch_on(rough, *others)
