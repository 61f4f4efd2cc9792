"""A split in seven steps, as a reader sees it."""

from drawing import Drawing

# What is in parent and child after each step: entries that stay are "s", those that move "m".
# A bucket's level says which hashes it holds; level None: the bucket does not exist for readers.
STEPS = [
    ("before", "", ("L", "smsmm", False), (None, "", False)),
    ("1", "lock parent and child", ("L", "smsmm", True), (None, "", True)),
    ("2", "copy what moves", ("L", "smsmm", True), (None, "mmm", True)),
    ("3", "one bucket more", ("L", "smsmm", True), (None, "mmm", True)),
    ("4", "child gets a level: commit", ("L", "smsmm", True), ("L+1", "mmm", True)),
    ("5", "parent gets the next level", ("L+1", "smsmm", True), ("L+1", "mmm", True)),
    ("6", "clear what has moved", ("L+1", "ss", True), ("L+1", "mmm", True)),
    ("7", "unlock child and parent", ("L+1", "ss", False), ("L+1", "mmm", False)),
]
COMMIT = 4  # before it a reader finds what moves in the parent, after it in the child


def bucket(drawing, x, y, name, level, entries, locked):
    drawing.rect(
        x, y, 176, 44, "red" if locked else "grey", radius=5, dashed=level is None, weight=1.6
    )
    drawing.text(x + 8, y + 19, name, size=12, bold=True)
    drawing.text(x + 8, y + 36, "no level" if level is None else f"level {level}", size=11)
    for place, entry in enumerate(entries):
        hue = "blue" if entry == "s" else "green"
        drawing.rect(x + 78 + place * 19, y + 14, 15, 15, hue, radius=3)


def draw():
    drawing = Drawing(
        900,
        530,
        "A split, step by step",
        "One bucket is split: the references that belong to the child are copied, the child gets "
        "its level, the parent gets its level, the moved references are cleared. At every moment "
        "each entry is found in the parent or in the child.",
    )
    drawing.heading(
        "Linear hashing, one bucket at a time. Where a reader finds an entry that moves:"
    )
    for place, (number, what, parent, child) in enumerate(STEPS):
        x = 24 + (place % 4) * 218
        y = 84 + (place // 4) * 206
        drawing.rect(x, y, 198, 190, "paper")
        title = "before" if number == "before" else number
        drawing.text(x + 11, y + 22, title, size=14, bold=True)
        if what:
            drawing.text(x + 30, y + 22, what, size=12)
        bucket(drawing, x + 11, y + 36, "parent", *parent)
        bucket(drawing, x + 11, y + 90, "child", *child)
        found, hue = "in the parent", "blue"
        if place >= COMMIT:
            found, hue = ("in either", "amber") if place == COMMIT else ("in the child", "green")
        drawing.box(x + 11, y + 146, 176, 30, found, hue=hue, size=12.5)
    drawing.rect(24, 500, 14, 14, "blue", radius=3)
    drawing.text(44, 512, "stays", size=12, hue="soft")
    drawing.rect(96, 500, 14, 14, "green", radius=3)
    drawing.text(116, 512, "moves", size=12, hue="soft")
    drawing.rect(176, 500, 14, 14, "red", radius=3)
    drawing.text(196, 512, "locked: writers wait, readers do not", size=12, hue="soft")
    drawing.text(
        876,
        512,
        "Killed before 4: undone. Killed after 4: finished.",
        size=12,
        hue="soft",
        anchor="end",
    )
    return drawing
