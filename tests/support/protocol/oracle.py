"""What must hold: the abstract map behind each memory, and the law that operations obey.

The view of a memory is the value of each key, or ABSENT, as the buckets give it at one instant. All
promises about values are promises about the view (DESIGN.md, R2, W1, C1):

- the view is consistent at every instant: each key is in at most one element, its value is
  complete, and where two buckets answer for a key they give the same answer;
- only the one step that commits an operation changes the view, as the operation demands, and once;
  recovery never changes it, but finishes or undoes what the view already shows;
- what an operation returns was true of the view at some instant while the operation ran: a lookup's
  value was there, a missed key was absent.

So each operation on a key takes effect at one instant between its begin and its end: it is
linearizable. At rest nothing may be lost, leaked or held, by the rules of check()
(cython/processes/check.pxd).
"""

from support.protocol.segment_model import (
    ALLOC,
    FREE,
    JOURNAL_COMMITTED,
    JOURNAL_REMOVES,
    LINK_BASE,
    LIVE,
    PAYLOAD_SHIFT,
    READABLE,
    READY,
    ULOCK,
    UPD,
    block_parts,
    covers,
    depot_parts,
    level_plus1,
    owner_of,
    state_of,
)

ABSENT = 0  # every value is a positive number
WALK_BITS = 16  # bits for each key: a walk notes the values of all
RETRY = "RETRY"  # an attempt met a change; never an outcome


class Violation(Exception):
    """A promise is broken. The explorer adds the path that led there."""

    path = ()
    explorer = None


# ---- operations ----


def seen_at_begin(operation, view):
    """The notes of an operation at its first step: (operation, the values that its key had, as a
    set of bits, the value that the operation replaced)."""
    return operation, noted(operation, view), None


def seen_now(seen, view):
    """The notes of every running operation, after the view changed."""
    return tuple(
        None if mine is None else (mine[0], mine[1] | noted(mine[0], view), mine[2])
        for mine in seen
    )


def noted(operation, view):
    """The part of the key's value on which the outcome depends; less than all of it, so that there
    are fewer states."""
    kind, key, _ = operation
    if kind == "walk":
        return sum(1 << value + WALK_BITS * at for at, value in enumerate(view))
    if sweeps(operation):
        keys = range(1, len(view))
        return 1 << len(view) | sum(1 << key for key in keys if not is_over(view, key))
    if kind == "lookup":
        return 1 << view[key] | 1 << plain(view, key)
    if kind == "several":
        return int(any(view[each] == ABSENT for each, _ in operation[2]))
    if kind == "seen together":
        return 1 << together(view[each] for each in operation[2])
    if kind == "clear":
        return int(not any(view))
    if kind in ("contains", "insert"):
        return 1 << (view[key] != ABSENT)
    return int(view[key] == ABSENT) if kind in ("add", "delete", "replace") else 0


def plain(view, key):
    """The value that readers see in the element: of a committed journal, perhaps the old one."""
    return view[0][key - 1] if isinstance(view[0], tuple) else view[key]


def together(values):
    """One number for several values below 8."""
    number = 0
    for value in values:
        number = number * 8 + value
    return number


def sweeps(operation):
    return operation is not None and operation[0] in ("room", "expire")


def is_over(view, key):
    """Whether an entry has expired: in a timed segment its value is its deadline."""
    return ABSENT < view[key] <= view[0]


def check_change(before, after, operation, program, seen):
    """Check that the running operation may change the view so; the notes of all operations then."""
    if operation is not None and operation[0] == "several" and before[1:] != after[1:]:
        return seen_now(check_several(before, after, operation, program, seen), after)
    for key, (old, new) in enumerate(zip(before, after, strict=True)):
        if old == new or isinstance(old, tuple):
            continue
        if sweeps(operation) and new == ABSENT and is_over(before, key):
            continue
        cleared = operation is not None and operation[0] == "clear"
        if operation is None or (operation[1] != key and not cleared):
            raise Violation(
                f"key {key}: {old} became {new} in a step of another operation (W1, C1)"
            )
        kind, _, value = operation
        if seen[program][2] is not None and not cleared:
            raise Violation(f"key {key}: {kind} takes effect twice (W1)")
        if not change_is_right(kind, value, old, new):
            raise Violation(f"key {key}: {kind} made {new} of {old} (R2, W1)")
        seen = (*seen[:program], (*seen[program][:2], old), *seen[program + 1 :])
    return seen_now(seen, after)


def check_several(before, after, operation, program, seen):
    """All keys of the operation change in one step, and no other key does; the notes then."""
    changes = dict(operation[2])
    wanted = tuple(changes.get(key, before[key]) for key in range(1, len(before)))
    if after[1:] != wanted or seen[program][2] is not None:
        raise Violation(
            f"{before[1:]} became {after[1:]}: {changes} are not stored in one step (W1)"
        )
    return (*seen[:program], (*seen[program][:2], True), *seen[program + 1 :])


def change_is_right(kind, value, old, new):
    """Whether an operation of this kind may turn one value of its key into another."""
    if kind in ("clear", "delete"):
        return new == ABSENT
    if kind == "add":
        return old != ABSENT and new == old + value
    return new == value and (
        kind in ("tick", "room", "update") or (old == ABSENT) == (kind == "insert")
    )


def check_end(outcome, mine):
    """Check that an operation may end with this outcome."""
    (kind, key, _), values, replaced = mine
    if kind in ("lookup", "contains"):
        check_answer(kind, key, outcome, values)
    elif kind == "walk":
        check_walk(outcome, values)
    elif kind in ("recover", "settle", "resize", "view"):
        pass
    elif kind == "seen together":
        check_together(outcome, values)
    elif kind == "clear":
        if not values:
            raise Violation("clear says that it is done, but the map was never empty (W1)")
    elif outcome in ("ABSENT", "PRESENT"):
        if replaced is not None or not values & (1 if outcome == "ABSENT" else 2):
            raise Violation(f"key {key}: {kind} says {outcome}, which was never true (W1)")
    elif outcome == "DONE" or (outcome == "FULL" and kind == "room"):
        check_swept(kind, values)
    elif outcome == "FULL":
        pass
    elif replaced is None:
        raise Violation(f"key {key}: {kind} says that it is done, but it is not (W1)")
    elif kind == "delete" and outcome != replaced:
        raise Violation(f"key {key}: the value popped is {outcome}, not {replaced} (W1)")


def check_answer(kind, key, outcome, values):
    """A value found was the key's at some instant; a missed key was absent at some instant."""
    if not isinstance(outcome, int) or not values >> outcome & 1:
        had = [value or "ABSENT" for value in range(values.bit_length()) if values >> value & 1]
        raise Violation(f"key {key}: {kind} says {outcome or 'ABSENT'}, but it was {had} (R2, W1)")


def check_together(outcome, values):
    """The values of several keys, seen while they were locked, stood together at some instant."""
    if outcome is not None and not values >> together(outcome) & 1:
        raise Violation(f"the values {outcome} never stood together (L1)")


def check_swept(kind, values):
    """Every entry that had expired when the operation began was gone or renewed at some instant."""
    for key in range(1, values.bit_length() - 1):
        if not values >> key & 1:
            raise Violation(f"key {key} had expired before {kind} began, and was not removed (X1)")


def check_walk(entries, values):
    """A walk meets a key at most once, with a value it had; a key not met was absent once."""
    met = dict(entries)
    if len(met) != len(entries):
        raise Violation(f"the walk {entries} meets a key twice (W1)")
    for key in range(1, values.bit_length() // WALK_BITS + 1):
        had = values >> WALK_BITS * key & (1 << WALK_BITS) - 1
        check_answer("walk", key, met.get(key, ABSENT), had)


# ---- the view ----


class Oracle:
    """Computes the views of one segment's memories."""

    def __init__(self, segment):
        self.segment = segment
        self.keys = sorted(segment.hashes)

    def view(self, memory):
        """The value of each key; place 0 is the clock's. Violation if the view is inconsistent.
        In a segment with journals a committed one counts, and place 0 has what readers see."""
        clock = memory[self.segment.clock] if self.segment.timed else 0
        values = tuple(self.value_of(memory, key) for key in self.keys)
        if not self.segment.journal:
            return (clock, *values)
        return values, *self.with_journals(memory, values)

    def with_journals(self, memory, values):
        """The values of the keys as committed journals have them."""
        segment, values = self.segment, list(values)
        for context in range(1, segment.contexts + 1):
            word = memory[segment.of(context, "target")]
            lead = word >> 4 & 15
            leading = memory[segment.of(lead, "target")] if lead else 0
            header = memory[segment.element[word & 15]] if lead else 0
            if not leading & JOURNAL_COMMITTED or state_of(header) != ULOCK:
                continue
            if owner_of(header) == context:
                redo = memory[segment.redo(context, 0)]
                key = memory[segment.key(word & 15)]
                if key not in self.keys:
                    raise Violation(f"a journal names element {word & 15}, which is free (C1)")
                values[key - 1] = ABSENT if word & JOURNAL_REMOVES else redo
        return values

    def value_of(self, memory, key):
        segment = self.segment
        found = None
        count = memory[segment.table] >> PAYLOAD_SHIFT
        for number, bucket in enumerate(segment.bucket):
            level = level_plus1(memory[bucket])
            if level and number >= count:
                raise Violation(f"bucket {number} exists beyond the number, {count} (G1)")
            if level == 0 or not covers(level, number, segment.hashes[key]):
                continue
            named = {index for index in self.named(memory, bucket) if self.has(memory, index, key)}
            if found is not None and named != found:
                raise Violation(f"key {key}: two buckets differ about it (W1)")
            found = named
        if found is None:
            raise Violation(f"key {key}: no bucket answers for it (W1)")
        if len(found) > 1:
            raise Violation(f"key {key} is in the map twice (W1)")
        return self.read(memory, key, *found) if found else ABSENT

    def has(self, memory, index, key):
        readable = state_of(memory[self.segment.element[index]]) in READABLE
        return readable and memory[self.segment.key(index)] == key

    def read(self, memory, key, index):
        """The value of an element at this instant: in UPD that of the redo buffer."""
        segment = self.segment
        header = memory[segment.element[index]]
        if state_of(header) == UPD:
            words = {memory[segment.redo(owner_of(header), i)] for i in range(segment.value_words)}
        else:
            words = {memory[segment.value(index, i)] for i in range(segment.value_words)}
        if len(words) > 1:
            raise Violation(f"key {key}: its value is {sorted(words)}, a mixture (R2)")
        return words.pop()

    def places(self, memory, bucket):
        """(line, slot, index) of each taken slot of a chain, except links; and its lines."""
        segment = self.segment
        line, slots, lines = bucket, [], []
        while line is not None:
            following = None
            for slot in range(segment.slots):
                index = memory[segment.index(line, slot)]
                if index >= LINK_BASE:
                    following = segment.line[index - LINK_BASE]
                elif index:
                    slots.append((line, slot, index))
            if following in lines:
                raise Violation("a chain links to itself (C1)")
            line = following
            if line is not None:
                lines.append(line)
        return slots, lines

    def named(self, memory, bucket):
        return {index for _, _, index in self.places(memory, bucket)[0]}

    # ---- at rest ----

    def check_at_rest(self, memory):
        """C1, W2: the checks that check() makes of a map that no process is using."""
        segment = self.segment
        words = [segment.table, segment.credits, segment.line_block]
        words += segment.depot + segment.block + segment.bucket + segment.line[1:]
        words += [segment.rest] if segment.timed else []
        for address in words + segment.element[1:]:
            state = state_of(memory[address]) if address in segment.element + segment.line else 0
            if owner_of(memory[address]) and state != ALLOC:
                raise Violation(f"{segment.names[address]} is held by no living context (C1)")
        elements, lines = self.check_table(memory)
        entries = len(elements)
        credit_sum = memory[segment.credits] >> PAYLOAD_SHIFT
        for depot in segment.depot:
            head, count, credit = depot_parts(memory[depot])
            credit_sum += credit
            elements += self.free_list(memory, head, count, segment.next_free, segment.element)
        for number, block in enumerate(segment.block):
            elements += self.in_block(memory, number, block)
        lines += self.lines_in_block(memory)
        if sorted(elements) != list(range(1, segment.elements + 1)):
            raise Violation(f"elements lost or in two places: {sorted(elements)} (C1)")
        if sorted(lines) != list(range(1, segment.lines + 1)):
            raise Violation(f"lines lost or in two places: {sorted(lines)} (C1)")
        if credit_sum + entries != segment.elements:
            raise Violation(
                f"{credit_sum} credits + {entries} entries, not {segment.elements} (W2)"
            )

    def check_table(self, memory):
        """The elements and lines in chains; checks that each stands where it belongs."""
        segment = self.segment
        count = memory[segment.table] >> PAYLOAD_SHIFT
        elements, lines = [], []
        for number, bucket in enumerate(segment.bucket):
            level = level_plus1(memory[bucket])
            slots, linked = self.places(memory, bucket)
            if (slots and not level) or not self.level_fits(memory, number):
                raise Violation(
                    f"bucket {number} has level {level} - 1 in a table of {count} buckets (C1)"
                )
            for line, slot, index in slots:
                key = memory[segment.key(index)]
                if state_of(memory[segment.element[index]]) != LIVE:
                    raise Violation(f"element {index} is in the map but not LIVE (C1)")
                if memory[segment.tag(line, slot)] != segment.hashes[key]:
                    raise Violation(f"element {index} stands beside a tag that is not its own (C1)")
                if not covers(level, number, segment.hashes[key]):
                    raise Violation(f"element {index} stands in the wrong bucket (C1)")
            self.check_shape(memory, bucket, linked)
            elements += [index for _, _, index in slots]
            lines += [segment.line.index(line) for line in linked]
        return elements, lines

    def level_fits(self, memory, number):
        """What check() demands of levels: a bucket is there if and only if its parent has been
        split that far."""
        if number == 0:
            return True
        parent = memory[self.segment.bucket[number ^ 1 << number.bit_length() - 1]]
        there = level_plus1(memory[self.segment.bucket[number]]) != 0
        return there == (level_plus1(parent) > number.bit_length())

    def check_shape(self, memory, bucket, linked):
        """Before a link all slots are taken; a line has no gaps, is not empty, and is LIVE."""
        segment = self.segment
        for at, line in enumerate([bucket, *linked]):
            used = [memory[segment.index(line, slot)] != 0 for slot in range(segment.slots)]
            dense = used == sorted(used, reverse=True) and used[0]
            if (at < len(linked) and not all(used)) or (line != bucket and not dense):
                raise Violation(f"{segment.names[line]} has gaps: {used} (C1)")
            if line != bucket and state_of(memory[line]) != LIVE:
                raise Violation(f"{segment.names[line]} is linked but not LIVE (C1)")

    def free_list(self, memory, at, count, next_free, headers):
        found = []
        for _ in range(count):
            if not 0 < at < len(headers) or state_of(memory[headers[at]]) != FREE:
                raise Violation(f"a free list leads to {at} (C1)")
            found.append(at)
            at = memory[next_free(at)]
        return found

    def in_block(self, memory, number, block):
        """The elements in a block: its free list, and those never used."""
        segment = self.segment
        state, fresh, free, head = block_parts(memory[block])
        if (state == READY) != bool(memory[segment.present[number]]):
            raise Violation(f"block {number} is not READY and has memory, or READY without (M1)")
        if state != READY:
            return [*range(max(1, number * segment.block_capacity), segment.elements + 1)]
        first = number * segment.block_capacity
        limit = min(first + segment.block_capacity, segment.elements + 1)
        found = self.free_list(memory, first + head, free, segment.next_free, segment.element)
        return [*found, *range(first + fresh, limit)]

    def lines_in_block(self, memory):
        segment = self.segment
        _, fresh, free, head = block_parts(memory[segment.line_block])
        found = self.free_list(memory, head, free, segment.line_next, segment.line)
        return [*found, *range(fresh, segment.lines + 1)]
