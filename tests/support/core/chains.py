"""Chains in an Image: where their references are, and the stores of a removal, one by one."""

from support.core.picture import ALLOC, LINK_BASE, LINK_SLOT, SLOTS, held_by

BUCKET = 1
WHO = 2  # the context that holds the bucket


def places(image):
    """Return the (line, slot) of each reference in the chain's order, the last line but one, and
    the last line."""
    line, before = image.picture.buckets[BUCKET], None
    found = []
    while True:
        linked = line.indices[LINK_SLOT] >= LINK_BASE
        found += [(line, slot) for slot in range(SLOTS - linked) if line.indices[slot]]
        if not linked:
            return found, before, line
        before, line = line, image.picture.lines[line.indices[LINK_SLOT] - LINK_BASE]


def stores_of_removal(image, victim):
    """Return the stores of chain_remove and chain_dissolve, reimplemented as a function for each
    store."""
    found, before, last = places(image)
    line, slot = next((line, slot) for line, slot in found if line.indices[slot] == victim)
    top_line, top = found[-1]
    top_tag, top_index = top_line.tags[top], top_line.indices[top]
    stores = []
    if (line, slot) != found[-1] and top_index != victim:
        stores.append(lambda: line.indices.__setitem__(slot, top_index))
        stores.append(lambda: line.tags.__setitem__(slot, top_tag))
    stores.append(lambda: last.indices.__setitem__(top, 0))
    if top == 1:
        line_index = before.indices[LINK_SLOT] - LINK_BASE
        context = image.picture.context(WHO)

        def own():
            last.header = ALLOC << 16 | held_by(WHO)

        stores.append(lambda: setattr(context, "line", line_index))
        stores.append(own)
        stores.append(lambda: before.tags.__setitem__(LINK_SLOT, last.tags[0]))
        stores.append(lambda: before.indices.__setitem__(LINK_SLOT, last.indices[0]))
    return stores


def set_levels(image, unit, count):
    """Give the table count buckets, all empty."""
    for index in range(len(image.picture.buckets)):
        level = unit.bucket_level(count, index) + 1 if index < count else 0
        image.picture.buckets[index].header = level << 16
    image.picture.header.table = count << 16
