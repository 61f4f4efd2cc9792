"""Scenes of meeting.py, an explorer for them, what must be so at the end, and the mutants."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

from support.protocol.automaton import (
    AWAIT,
    CAS,
    LOAD,
    LOCK,
    SLEEP,
    STORE,
    WAKE,
    Automaton,
)
from support.protocol.meeting import (
    BROKE,
    PASSED,
    RETURNED,
    TOLD,
    WAITING,
    Cell,
    barrier_recover,
    barrier_reset,
    barrier_wait,
    condition_notify,
    condition_recover,
    condition_wait,
)
from support.protocol.oracle import Violation

GONE = -1
STATES_MAX = 2_000_000


@dataclass(frozen=True)
class Scene:
    """Programs, as (function, further arguments), by their numbers; which programs may die, and how
    many of them do. cell: makes the memory."""

    programs: tuple
    law: object
    mortal: frozenset = frozenset()
    deaths: int = 0
    cell: Callable = Cell


class Explorer:
    """Visits every state of a scene: from each state each living program takes its next step, and
    each mortal program dies.

    A state is (memory, place of each program). A program that dies leaves the memory as it is.
    """

    def __init__(self, scene, without=()):
        self.scene = scene
        self.cell = scene.cell(len(scene.programs), without)
        self.automata = [
            Automaton(functools.partial(function, self.cell, me, *arguments))
            for me, (function, *arguments) in enumerate(scene.programs)
        ]
        self.ends = set()

    def run(self):
        """Return the number of states."""
        first = self.first_memory(), tuple(one.start for one in self.automata)
        seen, frontier = {first}, [first]
        while frontier:
            state = frontier.pop()
            followers = list(self.followers(*state))
            if not followers:
                self.ends.add(state)
                self.judge_end(*state)
            for follower in followers:
                if follower not in seen:
                    seen.add(follower)
                    frontier.append(follower)
            assert len(seen) <= STATES_MAX
        return len(seen)

    def first_memory(self):
        return (0,) * len(self.cell.names)

    def judge_end(self, memory, places):
        self.scene.law(self.cell, memory, places)

    def followers(self, memory, places):
        for program, place in enumerate(places):
            if place == GONE:
                continue
            action = self.automata[program].actions[place]
            if action is None:
                continue
            if self.may_go(action, memory, places):
                after, answer = self.access(action, memory)
                on, _ = self.automata[program].step(place, answer)
                yield after, (*places[:program], on, *places[program + 1 :])
            if program in self.scene.mortal and places.count(GONE) < self.scene.deaths:
                dead = list(memory)
                dead[self.cell.asleep[program]] = 0
                yield tuple(dead), (*places[:program], GONE, *places[program + 1 :])

    def may_go(self, action, memory, places):
        kind, address, condition, subjects = action
        if kind == LOCK:
            return memory[address] == 0
        return kind != AWAIT or self.holds(condition, *subjects, memory, places)

    def holds(self, condition, subject, memory, places):
        """Return whether the condition for which a program waits holds."""
        if condition == "awake":
            return memory[self.cell.asleep[subject]] == 0
        if condition == "dead":
            return places[subject] == GONE
        if condition == "outside":
            return memory[self.cell.activity[subject]] == 0
        assert condition == "tickets"
        return memory[self.cell.tickets] >= subject

    def access(self, action, memory):
        """Perform one access; return the memory after it, and the answer."""
        kind, address, value, other = action
        after = list(memory)
        answer = None
        if kind == LOAD:
            answer = memory[address]
        elif kind in (STORE, LOCK):
            after[address] = value
        elif kind == CAS:
            answer = memory[address] == value
            if answer:
                after[address] = other
        elif kind == SLEEP:
            answer = memory[address] == value
            if answer:
                after[other] = address + 1
        elif kind == WAKE:
            for asleep in self.cell.asleep:
                if memory[asleep] == address + 1:
                    after[asleep] = 0
        else:
            assert kind == AWAIT
        return tuple(after), answer


# ---- what must be so when no program can move ----


def notified_once(cell, memory, places):
    """Each notification has reached one waiter, if there were enough waiters, and no sleeper has
    been told. After a death one more waiter may have been told, and a sleeper may have been told,
    since in the core it looks by itself at the end of its slice."""
    words = [memory[word] for word in cell.word]
    deaths = places.count(GONE)
    if TOLD in words and not deaths:
        raise Violation("a waiter sleeps although it has been told")
    taken = sum(memory[result] == RETURNED for result in cell.result) + words.count(TOLD)
    if taken < memory[cell.notified] and WAITING in words:
        raise Violation("a notification is lost")
    if taken > memory[cell.notified] + deaths:
        raise Violation("a notification is taken twice")


def one_outcome(cell, memory, places):
    """All parties of a generation had the same outcome, no party sleeps although the outcome is
    known, and no party waits for a dead one. After a death a party may sleep, since in the core it
    looks by itself at the end of its slice."""
    outcomes = {}
    generation, come = memory[cell.state] // 100, memory[cell.state] % 10
    waiting = 0
    for me, place in enumerate(places):
        word, result = memory[cell.word[me]], memory[cell.result[me]]
        if place != GONE and memory[cell.asleep[me]]:
            knows = word % 10 != WAITING or word // 10 != generation
            if knows and GONE not in places:
                raise Violation("a party sleeps although the others went on")
            waiting += not knows
        if result % 10 in (PASSED, BROKE):
            outcomes.setdefault(result // 10, set()).add(result % 10)
    if waiting and come > waiting:
        raise Violation("a party waits for a dead one")
    if any(len(found) > 1 for found in outcomes.values()):
        raise Violation("some parties passed a barrier that broke for others")


def condition(*programs, mortal=(), deaths=0):
    return Scene(programs, notified_once, frozenset(mortal), deaths)


def barrier(*programs, mortal=(), deaths=0):
    return Scene(programs, one_outcome, frozenset(mortal), deaths)


WAIT = (condition_wait,)
SCENES = {
    "two threads wait, and one is notified": condition(WAIT, WAIT, (condition_notify, 1)),
    "a waiter gives up while it is notified": condition(
        (condition_wait, True), WAIT, (condition_notify, 2)
    ),
    "two waiters are notified by two threads": condition(
        WAIT, WAIT, (condition_notify, 1), (condition_notify, 2)
    ),
    "a waiter dies while it is notified": condition(
        WAIT, WAIT, (condition_notify, 2), (condition_recover, 0), mortal=[0], deaths=1
    ),
    "a waiter and its recoverer die": condition(
        WAIT,
        WAIT,
        (condition_notify, 2),
        (condition_recover, 0),
        (condition_recover, 0, 3),
        mortal=[0, 3],
        deaths=2,
    ),
    "two programs die while a waiter is notified": condition(
        WAIT,
        WAIT,
        WAIT,
        (condition_notify, 3),
        (condition_recover, 0),
        (condition_recover, 1),
        mortal=[0, 1],
        deaths=2,
    ),
    "three parties meet": barrier((barrier_wait, 3), (barrier_wait, 3), (barrier_wait, 3)),
    "two parties meet, and one gives up": barrier((barrier_wait, 2, True), (barrier_wait, 2)),
    "two parties meet, and a third program resets the barrier": barrier(
        (barrier_wait, 2), (barrier_wait, 2), (barrier_reset,)
    ),
    "three parties come, one gives up, and one resets the barrier": barrier(
        (barrier_wait, 3, True), (barrier_wait, 3), (barrier_reset,)
    ),
    "two parties meet, and a third comes and gives up": barrier(
        (barrier_wait, 2), (barrier_wait, 2), (barrier_wait, 2, True)
    ),
    "a party dies": barrier(
        (barrier_wait, 2), (barrier_wait, 2), (barrier_recover, 0), mortal=[0], deaths=1
    ),
    "a party and its recoverer die": barrier(
        (barrier_wait, 2),
        (barrier_wait, 2),
        (barrier_recover, 0),
        (barrier_recover, 0, 2),
        mortal=[0, 2],
        deaths=2,
    ),
}

# Each step that can be left out, the scene that shows the mistake, and what then goes wrong.
LOST = "a notification is lost"
ASLEEP = "a waiter sleeps although it has been told"
SPLIT = "some parties passed a barrier that broke for others"
MUTANTS = {
    "a waiter stores its word before it releases the lock": (
        "two threads wait, and one is notified",
        LOST,
    ),
    "a waiter leaves by a CAS": ("a waiter gives up while it is notified", LOST),
    "a waiter is told before it is woken": ("two threads wait, and one is notified", ASLEEP),
    "a waiter is told by a CAS": ("a waiter gives up while it is notified", ASLEEP),
    "recovery ends a wait by a CAS": ("a waiter dies while it is notified", LOST),
    "recovery tells the next waiter": ("a waiter dies while it is notified", LOST),
    "a party stores its word before it has come": ("two parties meet, and one gives up", SPLIT),
    "a party breaks only its own generation": (
        "two parties meet, and a third comes and gives up",
        SPLIT,
    ),
    "a party that gives up checks whether all have come": (
        "two parties meet, and one gives up",
        SPLIT,
    ),
    "waiters are marked before the generation changes": (
        "two parties meet, and a third program resets the barrier",
        SPLIT,
    ),
    "a waiter reads the bell before it looks": (
        "three parties meet",
        "sleeps although the others went on",
    ),
    "a waiter looks at its own word last": (
        "two parties meet, and a third program resets the barrier",
        SPLIT,
    ),
    "the recovery of a waiting party breaks the barrier": ("a party dies", "waits for a dead one"),
}
