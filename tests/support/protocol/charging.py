"""The budget: one word that counts the pages of blocks and runs (budget.pxd, pool.pxd, object.pxd),
and the marks of regions, which count beside it (region.pxd).

There are three blocks: one of one page, one of two pages, and a run, which begins with one page
and grows; in a cache, blocks of elements and lines are charged like the first two. Two regions grow
and shrink at their ends. The word of a block has its state, the context that owns the object in it,
and the context that holds the word. What an object's header says about its owner is part of that
word here: test_protocol.py plays how objects change their owners. A context that finds the budget
held gives up at once; that it may wait as well is one of the orders in which programs take turns.
"""

from support.protocol.automaton import awaits, cas, load, store
from support.protocol.words import Words

HOLE, EMPTY, USED, RELEASING = range(4)  # EMPTY and USED are READY in the core
SMALL, LARGE, RUN = range(3)  # the blocks
FIRST_PAGES = (1, 2, 1)
OK, BUSY, FULL = range(3)


class Budget(Words):
    """The words of the budget, the blocks and the contexts. without: the steps that a mutant leaves
    out."""

    def __init__(self, programs, without=(), pages_most=6):
        super().__init__(without)
        contexts = range(programs)
        self.pages_most = pages_most
        self.budget = self._word("budget")
        self.block = [self._word(f"word of block {block}") for block in range(3)]
        self.memory = [self._word(f"pages of block {block}") for block in range(3)]
        self.run_pages = self._word("pages that the run says it has")
        self.region = [self._word(f"lock of region {region}") for region in range(2)]
        self.allocated = [self._word(f"mark of region {region}") for region in range(2)]
        self.region_memory = [self._word(f"pages of region {region}") for region in range(2)]
        self.region_named = [self._word(f"region that {me} names") for me in contexts]
        self.named = [self._word(f"block that {me} names") for me in contexts]
        self.charged = [self._word(f"charged by {me}") for me in contexts]
        self.debt = [self._word(f"owed by {me}") for me in contexts]
        self.after = [self._word(f"budget after the change by {me}") for me in contexts]
        self.wanted = [self._word(f"pages wanted by {me}") for me in contexts]
        self.asleep = [self._word(f"sleep of {me}") for me in contexts]
        self.ended = [self._word(f"end of {me}") for me in contexts]


def word_of(state, owner=0, holder=0):
    """Return the word of a block. Contexts are counted from 1 here."""
    return state * 100 + owner * 10 + holder


def state_of(word):
    return word // 100


def owner_of(word):
    return word // 10 % 10


def holder_of(word):
    """Return the holder of a block's word or of the budget."""
    return word % 10


def pages_of(budget):
    return budget // 10


# ---- the budget ----


def regions_pages(m):
    first = yield load(m.allocated[0])
    second = yield load(m.allocated[1])
    return first + second


def charge(m, me, pages):
    """Play budget_charge."""
    beside = 0
    early = not m.does("regions are added up while the budget is held")
    if early:
        beside = yield from regions_pages(m)
    word = yield load(m.budget)
    if holder_of(word):
        return BUSY
    held = yield cas(m.budget, word, word + me + 1)
    if not held:
        return BUSY
    if not early:
        beside = yield from regions_pages(m)
    full = pages_of(word) + beside + pages > m.pages_most
    beside = 0
    if full:
        yield store(m.budget, word)
        return FULL
    if m.does("the budget's next value is noted before the charge"):
        yield store(m.after[me], (pages_of(word) + pages + 1) * 2)
    noted_first = m.does("a charge is noted before the budget has it")
    if noted_first:
        yield store(m.charged[me], pages)
    yield store(m.budget, word + pages * 10)
    if not noted_first:
        yield store(m.charged[me], pages)
    yield store(m.after[me], 0)
    return OK


def refund(m, me):
    """Play budget_refund."""
    owed = yield load(m.debt[me])
    if not owed:
        return OK
    word = yield load(m.budget)
    if holder_of(word):
        return BUSY
    held = yield cas(m.budget, word, word + me + 1)
    if not held:
        return BUSY
    if m.does("the budget's next value is noted before the refund"):
        yield store(m.after[me], (pages_of(word) - owed + 1) * 2 + 1)
    yield store(m.budget, word - owed * 10)
    yield store(m.debt[me], 0)
    yield store(m.after[me], 0)
    return OK


def recover_budget(m, me):
    """Play budget_recover as context me."""
    word = yield load(m.budget)
    after = yield load(m.after[me])
    if holder_of(word) == me + 1:
        if not after:
            yield store(m.budget, word - me - 1)
            return
        if not after % 2 and m.does("recovery completes a charge that was noted"):
            yield store(m.charged[me], after // 2 - 1 - pages_of(word))
        yield store(m.budget, (after // 2 - 1) * 10)
    if after % 2:
        yield store(m.debt[me], 0)
    yield store(m.after[me], 0)


# ---- blocks ----


def hold(m, me, block, state):
    """Name a block, and hold it if it is in this state."""
    yield store(m.named[me], block + 1)
    word = yield load(m.block[block])
    if word != word_of(state, owner_of(word)):
        return False
    held = yield cas(m.block[block], word, word + me + 1)
    return held


def fill(m, me, block):
    """Play block_commit."""
    held = yield from hold(m, me, block, HOLE)
    if not held:
        return BUSY
    status = OK
    if m.does("a context refunds what it owes before it charges"):
        status = yield from refund(m, me)
    charged_first = m.does("memory is committed after it is charged")
    if not charged_first:
        yield store(m.memory[block], FIRST_PAGES[block])
    if status == OK:
        status = yield from charge(m, me, FIRST_PAGES[block])
    if status == OK:
        yield store(m.memory[block], FIRST_PAGES[block])
        if block == RUN:
            yield store(m.run_pages, 1)
        yield store(m.block[block], word_of(EMPTY))
        yield store(m.charged[me], 0)
    else:
        if not charged_first:
            yield store(m.memory[block], 0)
        yield store(m.block[block], word_of(HOLE))
    return status


def vacate(m, me, block, refused):
    """Play block_vacate. refused: the kernel does not give the memory back."""
    own_note = m.does("the pages of a held block have a note of their own")
    charged = yield load(m.charged[me] if own_note else m.debt[me])
    owed = yield load(m.debt[me])
    if own_note and owed and m.does("pages that are owed already are not the block's"):
        charged = 0
    if refused and charged:
        yield store(m.memory[block], charged)
        if block == RUN:
            yield store(m.run_pages, charged)
        if not own_note:
            yield store(m.block[block], word_of(EMPTY, 0, me + 1))
            yield store(m.debt[me], 0)
        yield store(m.block[block], word_of(EMPTY))
        yield store(m.charged[me], 0)
        return BUSY
    late = not m.does("a debt is noted after the memory has gone")
    if late and charged:
        yield store(m.debt[me], charged)
        yield from refund(m, me)
    if not refused:
        yield store(m.memory[block], 0)
        if block == RUN:
            yield store(m.run_pages, 0)
    early = m.does("a debt is noted before the block is free")
    if early and not late and own_note and charged:
        yield store(m.debt[me], charged)
    yield store(m.block[block], word_of(HOLE))
    if not early and charged:
        yield store(m.debt[me], charged)
    yield store(m.charged[me], 0)
    return OK


def release(m, me, block, refused=False):
    """Play block_release."""
    held = yield from hold(m, me, block, EMPTY)
    if not held:
        return
    owed = yield load(m.debt[me])
    if owed and m.does("a context that owes pages gives no memory back"):
        yield store(m.block[block], word_of(EMPTY))
        return
    pages = FIRST_PAGES[block]
    if block == RUN:
        pages = yield load(m.run_pages)
    own_note = m.does("the pages of a held block have a note of their own")
    if m.does("the pages of a block are noted before it is given up"):
        yield store(m.charged[me] if own_note else m.debt[me], pages)
    if block == RUN:
        yield store(m.run_pages, 0)
    yield store(m.block[block], word_of(RELEASING, 0, me + 1))
    if not m.does("the pages of a block are noted before it is given up"):
        yield store(m.charged[me], pages)
    del owed
    yield from vacate(m, me, block, refused)
    yield from refund(m, me)


def grow(m, me, pages):
    """Play run_grow: the run is this context's."""
    status = yield from refund(m, me)
    had = yield load(m.run_pages)
    if status == OK:
        if m.does("the pages that a run wants are noted before they are charged"):
            yield store(m.wanted[me], pages)
        status = yield from charge(m, me, pages - had)
        if status == OK:
            yield store(m.run_pages, pages)
        yield store(m.wanted[me], 0)
        yield store(m.charged[me], 0)
    if status == OK:
        yield store(m.memory[RUN], pages)
    return status


def give(m, me, block, refused=False):
    """Play pool_give: the object in the block is this context's."""
    held = yield from hold(m, me, block, USED)
    if held:
        yield store(m.block[block], word_of(EMPTY))
        yield from release(m, me, block, refused)


def recover_block(m, me, block, refused):
    """Play recover_block as context me, which holds the block."""
    word = yield load(m.block[block])
    if state_of(word) not in (EMPTY, USED):
        if not m.does("the pages of a held block have a note of their own"):
            charged = yield load(m.charged[me])
            if charged:
                yield store(m.debt[me], charged)
            yield store(m.charged[me], 0)
            del charged
        yield from vacate(m, me, block, refused)
        return
    own_note = m.does("the pages of a held block have a note of their own")
    charged = yield load(m.charged[me] if own_note else m.debt[me])
    if block == RUN and charged and m.does("recovery tells a run again which pages it has"):
        yield store(m.run_pages, charged)
    if not own_note and state_of(word) == EMPTY:
        yield store(m.debt[me], 0)
    yield store(m.charged[me], 0)
    yield store(m.block[block], word - me - 1)


# ---- regions ----


def region_charge(m, me, region, upto):
    """Raise the mark of a held region. The mark is what is counted, so there is no note of it."""
    word = yield load(m.budget)
    if holder_of(word):
        return BUSY
    held = yield cas(m.budget, word, word + me + 1)
    if not held:
        return BUSY
    beside = yield from regions_pages(m)
    had = yield load(m.allocated[region])
    status = OK if pages_of(word) + beside + upto - had <= m.pages_most else FULL
    del beside, had
    inside = m.does("a mark rises while the budget is held")
    if inside and status == OK:
        yield store(m.allocated[region], upto)
    yield store(m.budget, word)
    if not inside and status == OK:
        yield store(m.allocated[region], upto)
    return status


def extend(m, me, region, upto):
    """region_commit."""
    yield store(m.region_named[me], region + 1)
    held = yield cas(m.region[region], 0, me + 1)
    if held:
        marked_first = m.does("a mark rises before the memory is committed")
        if not marked_first:
            yield store(m.region_memory[region], upto)
        status = OK
        had = yield load(m.allocated[region])
        if had < upto:
            status = yield from region_charge(m, me, region, upto)
        if status == OK:
            yield store(m.region_memory[region], upto)
        yield store(m.region[region], 0)
        del status, had
    yield from ends(m, me)


def shrink(m, me, region, keep):
    """region_release."""
    yield store(m.region_named[me], region + 1)
    held = yield cas(m.region[region], 0, me + 1)
    if held:
        if not m.does("a mark falls after the memory has gone"):
            yield store(m.allocated[region], keep)
        yield store(m.region_memory[region], keep)
        yield store(m.allocated[region], keep)
        yield store(m.region[region], 0)
    yield from ends(m, me)


# ---- the programs ----


def ends(m, me):
    yield store(m.ended[me], 1)


def store_object(m, me, block, pages):
    """Fill the block, take the object, and let an entry own it."""
    yield from fill(m, me, block)
    held = yield from hold(m, me, block, EMPTY)
    if held:
        yield store(m.block[block], word_of(USED, me + 1))
        status = OK
        if block == RUN and pages > 1:
            status = yield from grow(m, me, pages)
        if status == OK:
            yield store(m.block[block], word_of(USED))
        else:
            yield from give(m, me, block)
        del status
    yield from refund(m, me)


def delete_objects(m, me, blocks, refused=False):
    """Delete an entry that owns the objects in these blocks."""
    for at in range(len(blocks)):
        word = yield load(m.block[blocks[at]])
        taken = False
        if word == word_of(USED):
            taken = yield cas(m.block[blocks[at]], word, word_of(USED, me + 1))
        if taken:
            yield from give(m, me, blocks[at], refused)
        del word, taken
    yield from refund(m, me)


def put(m, me, block, pages=1):
    yield from store_object(m, me, block, pages)
    yield from ends(m, me)


def remove(m, me, *blocks):
    yield from delete_objects(m, me, blocks)
    yield from ends(m, me)


def remove_refused(m, me, *blocks):
    """Delete an entry while the kernel gives no memory back."""
    yield from delete_objects(m, me, blocks, True)
    yield from ends(m, me)


def replace(m, me, old, new):
    """Delete an entry, and store another one."""
    yield from delete_objects(m, me, (old,))
    yield from store_object(m, me, new, 1)
    yield from ends(m, me)


def recover_refused(m, me, dead):
    """Recover while the kernel gives no memory back."""
    yield from recover(m, me, dead, None, True)


def recover(m, me, dead, other=None, refused=False):
    """Play context_recover. other: another recoverer, which does not act at the same time."""
    yield awaits("dead", dead)
    if other is not None:
        yield awaits("dead", other)
    named = yield load(m.region_named[dead])
    if named:
        word = yield load(m.region[named - 1])
        if word == dead + 1:
            yield store(m.region[named - 1], 0)
        del word
    yield from recover_budget(m, dead)
    named = yield load(m.named[dead])
    if named:
        word = yield load(m.block[named - 1])
        if holder_of(word) == dead + 1:
            yield from recover_block(m, dead, named - 1, refused)
        del word
    charged = yield load(m.charged[dead])
    wanted = yield load(m.wanted[dead])
    run = yield load(m.block[RUN])
    if charged and wanted and owner_of(run) == dead + 1:
        yield store(m.run_pages, wanted)
    yield store(m.charged[dead], 0)
    yield store(m.wanted[dead], 0)
    del charged, wanted, run, named
    for block in range(3):
        word = yield load(m.block[block])
        if state_of(word) == USED and owner_of(word) == dead + 1:
            while True:
                yield from give(m, dead, block, refused)
                word = yield load(m.block[block])
                if owner_of(word) != dead + 1:
                    break
                yield awaits("changed", (m.block[block], word))
        del word
    while True:
        status = yield from refund(m, dead)
        if status == OK:
            break
        del status
        word = yield load(m.budget)
        if holder_of(word):
            yield awaits("changed", (m.budget, word))
        del word
    yield from ends(m, me)
