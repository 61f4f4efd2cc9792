"""The 64 bits of a lock word, for each kind of word."""

from drawing import Drawing

BIT = 12
LEFT = 108
LOCK = [("owner context", 15, "violet"), ("L", 1, "red")]
UNLOCKED = [("never locked", 16, "grey")]
# From bit 63 down to bit 16: layout.pxd has the same list.
WORDS = [
    ("bucket", [("version", 40, "blue"), ("", 2, "grey"), ("level", 6, "green")]),
    ("element", [("version", 45, "blue"), ("st", 3, "green")]),
    ("table", [("number of buckets", 48, "blue")]),  # no context holds it
    ("depot", [("head element", 32, "blue"), ("credit", 8, "green"), ("count", 8, "amber")]),
    ("credits", [("entries that may still be added", 48, "green")]),
    (
        "block",
        [
            ("head", 12, "blue"),
            ("free", 12, "amber"),
            ("fresh", 12, "amber"),
            ("", 10, "grey"),
            ("", 2, "green"),
        ],
    ),
    ("budget", [("pages that blocks take", 48, "amber")]),
]


def draw():
    drawing = Drawing(
        900,
        476,
        "A lock word, for each kind",
        "Each lock word has 48 bits of payload, 15 bits that name the context of its owner, and "
        "the lock bit. Taking the lock and naming the owner is one compare-and-swap; releasing "
        "it and committing the change is one store.",
    )
    drawing.heading("48 bits of payload, 15 bits of owner, one lock bit")
    for bit in (63, 48, 32, 16, 1, 0):
        x = LEFT + (63 - bit + 0.5) * BIT
        drawing.text(x, 88, str(bit), size=11, hue="soft", anchor="middle")
    for place, (name, fields) in enumerate(WORDS):
        y = 96 + place * 40
        drawing.text(LEFT - 14, y + 21, name, size=14, anchor="end", bold=True)
        x = LEFT
        for label, bits, hue in fields + (UNLOCKED if name == "table" else LOCK):
            small = 13 if bits > 8 else 11
            drawing.rect(x, y, bits * BIT, 32, hue, radius=2, weight=1)
            if label:
                middle = x + bits * BIT / 2
                drawing.text(middle, y + 21, label, size=small, anchor="middle")
            x += bits * BIT
    drawing.brace(LEFT, LEFT + 48 * BIT - 3, 380)
    drawing.text(LEFT + 24 * BIT, 410, "the content of the word", anchor="middle", hue="soft")
    drawing.brace(LEFT + 48 * BIT + 3, LEFT + 64 * BIT, 380)
    drawing.text(LEFT + 56 * BIT, 410, "the owner, or 0", anchor="middle", hue="soft")
    drawing.text(
        24, 440, "Taken: one compare-and-swap sets L and the owner together, so a reader of a"
    )
    drawing.text(
        24, 460, "locked word knows its owner. Released: the same store writes the new payload."
    )
    return drawing
