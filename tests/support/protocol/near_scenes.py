"""Scenes of near.py, an explorer for them, and the mutants."""

from functools import partial

from support.protocol import meeting_scenes
from support.protocol.meeting_scenes import Scene
from support.protocol.near import (
    ACT,
    BEHIND,
    ERA,
    OLD,
    Host,
    answering,
    clock,
    cutter,
    cycling,
    fetcher,
    flusher,
    host_writer,
    passer,
    reader,
    tracker,
    writer,
)


class Explorer(meeting_scenes.Explorer):
    """Steps of the server and of locked sections are methods of the Host. The law is about the
    values that readers find, so a state in which no reader is left is an end."""

    def __init__(self, scene, without=()):
        super().__init__(scene, without)
        self.readers = [me for me, (program, *_) in enumerate(scene.programs) if program is reader]
        self.hits = 0  # reads that found a value

    def followers(self, memory, places):
        for me in self.readers:
            if self.automata[me].actions[places[me]] is not None:
                return super().followers(memory, places)
        return ()

    def may_go(self, action, memory, places):
        kind, _, name, arguments = action
        if kind != ACT:
            return super().may_go(action, memory, places)
        guard = getattr(self.cell, f"may_{name}", None)
        return guard is None or guard(memory, *arguments)

    def access(self, action, memory):
        kind, _, name, arguments = action
        if kind != ACT:
            return super().access(action, memory)
        after = list(memory)
        answer = getattr(self.cell, name)(after, *arguments)
        self.hits += name == "look" and answer is not None
        return tuple(after), answer


def read_already(m, memory, places):
    """Host has judged each read when the read loaded the entry."""


def scene(*programs, mortal=(), deaths=0, **words):
    programs = (*programs, (clock,), (cycling,))
    return Scene(programs, read_already, frozenset(mortal), deaths, cell=partial(Host, **words))


WATCH, READ, WRITE, ANSWERS = (tracker, 0), (reader, True), (writer,), (answering,)
SCENES = {
    "a key changes while it is fetched": scene(WATCH, READ, WRITE, ANSWERS, epochs=2),
    "two processes fetch a key that changes": scene(
        WATCH, READ, (fetcher,), WRITE, ANSWERS, epochs=2
    ),
    "a process that fetches dies": scene(
        WATCH, READ, (fetcher,), WRITE, ANSWERS, epochs=2, mortal=[2], deaths=1
    ),
    "the connection is cut": scene((tracker, 0, 2), READ, WRITE, ANSWERS, (cutter,)),
    "the server is flushed": scene(WATCH, READ, (flusher,), ANSWERS),
    "a tracker dies": scene(
        WATCH,
        (tracker, 1, 1, 2, 0),
        READ,
        WRITE,
        (answering, 1),
        connections=2,
        mortal=[0],
        deaths=1,
    ),
    "a tracker and its successor die": scene(
        (tracker, 0, 1, 0),
        (tracker, 1, 1, 0, 0),
        (tracker, 2, 1, 2, 1),
        READ,
        WRITE,
        (answering, 2),
        connections=3,
        epochs=4,
        mortal=[0, 1],
        deaths=2,
    ),
    "a replaced tracker extends the lease": scene(
        WATCH, (tracker, 1, 1, 0), READ, WRITE, ANSWERS, connections=2
    ),
    "a tracker takes over, and extends the lease": scene(
        (tracker, 0, 1, 0), (tracker, 1), READ, WRITE, (answering, 1), connections=2
    ),
    "a write through the cache": scene(WATCH, READ, (host_writer,), ANSWERS, epochs=2),
    "a write through the cache, and a write by another host": scene(
        WATCH, READ, (host_writer,), WRITE, ANSWERS, epochs=2, writes=2
    ),
    "a number passes to another node": scene(WATCH, READ, WRITE, ANSWERS, (passer,)),
    "the connection is cut, and fills need a lease": scene(
        (tracker, 0, 2, 4), READ, WRITE, ANSWERS, (cutter,), leased=True
    ),
    "a strict server": scene(WATCH, READ, WRITE, ANSWERS, epochs=2, strict=True),
}

THOROUGH = {  # some seconds each
    "two processes fetch a key that changes",
    "a process that fetches dies",
    "a tracker takes over, and extends the lease",
}
LONG = {  # more
    "a tracker and its successor die",
    "a replaced tracker extends the lease",
    "a write through the cache, and a write by another host",
}

FETCHED, TWO, CUT = (
    "a key changes while it is fetched",
    "two processes fetch a key that changes",
    "the connection is cut",
)
# Each step that can be left out, the scene that shows the mistake, and what then goes wrong.
MUTANTS = {
    "an answer is stored only under its token": (FETCHED, OLD),
    "each claim has a token of its own": (TWO, OLD),
    "the token is placed before the question is sent": (FETCHED, OLD),
    "a change ends claims, too": (FETCHED, OLD),
    "a reader needs a lease": (FETCHED, OLD),
    "a reader looks at the lease before the entry": (FETCHED, OLD),
    "a change is dealt with before the lease is extended": (FETCHED, OLD),
    "a proof is of the moment when a question was sent": (FETCHED, OLD),
    "the moment is taken before the question is sent": (FETCHED, OLD),
    "an answer proves what was so before the previous question": (FETCHED, OLD),
    "one question is asked at a time": (FETCHED, OLD),
    "a flush discards everything": ("the server is flushed", OLD),
    "a watch begins after the subscription": (CUT, OLD),
    "a watch begins with a new epoch": ("a tracker dies", ERA),
    "a lease is extended in its own term only": ("a number passes to another node", OLD),
    "a watch begins only if its node has the number": ("a number passes to another node", OLD),
    "a write stores nothing here": ("a write through the cache, and a write by another host", OLD),
    "a write removes the key before it returns": ("a write through the cache", BEHIND),
}

MUTANTS_THOROUGH = {"each claim has a token of its own", "a write stores nothing here"}

# Steps that these promises do not need, and the scenes in which they could matter. The lease of an
# earlier watch stays true. If two trackers have both heard every change since their own epochs
# began, both may extend the lease; the term is needed where a number passes to another node. If
# nothing is stored without a lease, nothing is stored before the subscription. If the server
# executes each question in a later cycle, one question suffices where the library asks two.
SPARE = {
    "a watch begins after the subscription": "the connection is cut, and fills need a lease",
    "a watch begins without a lease": CUT,
    "a process that has lost the office begins no watch": "a replaced tracker extends the lease",
    "a lease is extended in its own term only": "a replaced tracker extends the lease",
    "an answer proves what was so before the previous question": "a strict server",
}
