"""What nodes say of their cluster: the slots, their views of the owners, and which node is
believed."""

import pytest

from shmrhash._near.clusterwatch import Primary, Watch
from shmrhash._near.topology import parsed_nodes, parsed_slots, redirected, slot_of

ASKED = ("10.0.0.9", 7000)
NODES = b"""txt:aa 10.0.0.1:7001@17001,,shard-id=x master - 0 1 2 connected 5461-10922
bb 10.0.0.2:7002@17002,second.example myself,master - 0 1 3 connected 0-100 200 [7->-aa] [9-<-cc]
cc 10.0.0.3:7003@17003 master,fail - 0 1 1 disconnected 10923-16383
dd 10.0.0.4:7004@17004 slave aa 0 1 2 connected
ee :0@0 master,noaddr - 0 1 9 disconnected
ff 10.0.0.5:7005@17005 master - 0 1 0 connected
"""


def test_slots_are_those_that_the_servers_find():
    """The slots of keys are those of the specification, and of CLUSTER KEYSLOT."""
    assert slot_of(b"123456789") == 0x31C3
    assert slot_of(b"foo") == 12182
    assert slot_of(b"{foo}bar") == slot_of(b"x{foo}{bar}") == slot_of(b"foo")
    assert slot_of(b"foo{}{bar}") != slot_of(b"bar")
    assert slot_of(b"foo{{bar}}") == slot_of(b"{bar")
    assert slot_of(b"") == 0


def test_a_view_names_the_owner_of_each_slot():
    view = parsed_nodes(NODES, ASKED)

    assert view.me.id == b"bb"
    assert view.me.slots == ((0, 100), (200, 200))
    assert view.me.leaving == {b"[7->-aa]"}
    assert view.me.name == "second.example"
    assert view.members[b"aa"].name == ""
    assert view.members[b"aa"].address == ("10.0.0.1", 7001)
    assert {each.id for each in view.primaries()} == {b"aa", b"bb", b"cc", b"ff"}
    assert view.owners() == 3
    assert view.agrees(b"aa", ((5461, 10922),))
    assert not view.agrees(b"aa", ((5461, 10000),))
    assert not view.agrees(b"dd", ())
    assert view.contradicts(b"ff", ((100, 150),)), "they are bb's"
    assert not view.contradicts(b"ff", ((101, 199),)), "they are nobody's"
    assert not view.contradicts(b"bb", ((0, 100),))


@pytest.mark.parametrize("answer", [b"", b"nonsense", b"txt:aa 10.0.0.1:x@1 master - 0 1 2 c"])
def test_an_answer_that_is_no_view_is_refused(answer):
    with pytest.raises((ValueError, LookupError)):
        parsed_nodes(answer, ASKED)


def test_tables_and_redirections_may_leave_out_the_host():
    table = [[0, 5, [b"", 7001, b"aa"], [b"r", 1, b"dd"]], [6, 9, [b"name", 7002, b"bb"]]]

    assert list(parsed_slots(table, ASKED)) == [
        (0, 5, ("10.0.0.9", 7001), b"aa"),
        (6, 9, ("name", 7002), b"bb"),
    ]
    assert redirected("MOVED 5 10.0.0.2:7002", ASKED) == (False, 5, ("10.0.0.2", 7002))
    assert redirected("ASK 5 :7002", ASKED) == (True, 5, ("10.0.0.9", 7002))
    assert redirected("MOVED 5 ::1:7002", ASKED) == (False, 5, ("::1", 7002))
    assert redirected("ERR MOVED", ASKED) is None


class Sink:
    """A sink that records its calls."""

    def __init__(self):
        self.told = []

    def began(self, node):
        self.told.append(("began", node))

    def changed(self, node, keys):
        self.told.append(("changed", node, keys))

    def everything(self, node):
        self.told.append(("everything", node))

    def proved(self, node, moment_ns):
        self.told.append(("proved", node, moment_ns))

    def lost(self, node):
        self.told.append(("lost", node))

    def only(self, nodes):
        self.told.append(("only", sorted(nodes)))


class Numbers:
    def number(self, identity):
        return identity[0]


class Wire:
    """A connection whose answers the test chooses."""

    def __init__(self, run_id):
        self.run_id = run_id
        self.answers = []

    def receive(self):
        answers, self.answers = self.answers, []
        return answers

    def send(self, data):
        pass

    def close(self):
        pass


class Router:
    def __init__(self):
        self.ids, self.run_ids = {}, {}

    def uses_names(self):
        return False


class Play:
    """A watch of three primaries a, b and c, whose answers the test gives in any order."""

    def __init__(self):
        self.slots = {"a": "0-99", "b": "100-199", "c": "200-16383"}
        self.sink = Sink()
        self.watch = Watch(Router(), [b""], Numbers(), self.sink, 0.1)
        self.primaries = {name: Primary((name, 1), Wire(name.encode())) for name in self.slots}
        self.watch._watched = {each.place: each for each in self.primaries.values()}
        self.now = 0

    def begin_round(self, *names):
        """Ask the next questions, at the moments 100, 200, and so on."""
        self.now += 100
        self.watch._round += 1
        for name in names or self.primaries:
            self.watch._ask(self.primaries[name], self.now)

    def answer(self, name, slots=None, epochs=None, more=""):
        """Let one node say which node owns which slots."""
        slots = self.slots | (slots or {})
        epochs = {"a": 1, "b": 2, "c": 3} | (epochs or {})
        lines = [
            f"{each} {each}:1@2 {'myself,' * (each == name)}{'master' if owned != 'r' else 'slave'}"
            f" - 0 0 {epochs[each]} connected {'' if owned == 'r' else owned}"
            f" {more if each == name else ''}"
            for each, owned in slots.items()
        ]
        primary = self.primaries[name]
        primary.connection.answers = ["\n".join(lines).encode()]
        self.watch._hear(primary)

    def told(self):
        """Return the calls of the sink since the last time, as (call, node, moment)."""
        told, self.sink.told = self.sink.told, []
        return [
            (call, "abc" if call == "only" else chr(what[0]), *what[1:]) for call, *what in told
        ]


@pytest.fixture
def play():
    made = Play()
    made.begin_round()
    for name in "abc":
        made.answer(name)
    assert [call for call, *_ in made.told()] == ["began", "began", "began", "only"]
    return made


def test_an_answer_proves_what_came_before_the_previous_question(play):
    play.begin_round()
    play.answer("a")
    assert play.told() == [], "one of three"
    play.answer("b")
    assert play.told() == [("proved", "a", 100), ("proved", "b", 100)]
    play.answer("c")
    assert play.told() == [("proved", "c", 100)]


def test_a_node_that_does_not_answer_costs_the_others_nothing(play):
    for before in (100, 200, 300):
        play.begin_round("a", "b")
        play.answer("a")
        play.answer("b")
        assert play.told() == [("proved", "a", before), ("proved", "b", before)]


def test_a_minority_is_not_believed(play):
    for _ in range(3):
        play.begin_round("a")
        play.answer("a")
        assert play.told() == []


def test_views_of_an_earlier_round_are_no_votes(play):
    play.begin_round("a", "c")
    play.answer("a")
    play.begin_round("b")
    assert play.told() == []
    play.answer("b")
    assert [call for call, *_ in play.told()] == ["proved"], "a, by the later view of b"
    play.begin_round("a")
    play.answer("a")
    assert play.told() == [("proved", "b", 100)], "by the later view of a, but not a"


def test_a_node_that_another_one_replaced_is_not_believed(play):
    """A stopped node wakes and does not know that it was replaced: in its own view it still owns
    its slots."""
    play.begin_round()
    play.answer("b", {"a": "r", "c": "0-99 200-16383"}, {"c": 4})
    play.answer("a")
    play.answer("c", {"a": "r", "c": "0-99 200-16383"}, {"c": 4})
    assert not [what for what in play.told() if what[:2] == ("proved", "a")]


def test_the_last_view_of_a_node_that_contradicts_counts(play):
    play.begin_round()
    play.answer("c", {"a": "r", "c": "0-99 200-16383"}, {"c": 4})
    play.begin_round("a", "b")
    play.told()
    play.answer("a")
    play.answer("b")
    assert ("proved", "a", 200) not in play.told()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("a", {"slots": {"a": "0-98"}}),
        ("a", {"slots": {"a": "0-99 100"}}),
        ("a", {"epochs": {"a": 7}}),
        ("c", {"epochs": {"b": 7}}),
        ("a", {"more": "[5->-b]"}),
    ],
    ids=["loses", "gains", "epoch", "not greatest", "gives away"],
)
def test_whatever_touches_the_right_of_a_node_discards_what_it_has(play, name, change):
    play.begin_round()
    play.answer(name, **change)
    assert play.told()[0] == ("everything", name)


def test_a_failover_elsewhere_discards_nothing(play):
    play.begin_round()
    play.answer("a", epochs={"c": 7})
    assert play.told() == []


def test_values_of_a_node_that_is_no_primary_any_more_are_discarded(play):
    play.begin_round()
    with pytest.raises(ConnectionError, match="is a replica"):
        play.answer("a", {"a": "r", "b": "0-199"}, {"b": 4})
    assert play.told()[:2] == [("everything", "a"), ("lost", "a")]


def test_a_node_that_joins_contradicts_no_owner(play):
    """A new node, which knows no owner of any slot yet, has no vote."""
    play.slots = play.slots | {"d": ""}
    play.primaries["d"] = Primary(("d", 1), Wire(b"d"))
    play.watch._watched[("d", 1)] = play.primaries["d"]
    play.begin_round()
    play.answer("d", {"a": "", "b": "", "c": ""}, {"d": 0})
    assert play.told() == []
    play.answer("a", epochs={"d": 0})
    assert play.told() == []
    play.answer("b", epochs={"d": 0})
    assert [what[:2] for what in play.told()] == [("proved", "a"), ("proved", "b")]
