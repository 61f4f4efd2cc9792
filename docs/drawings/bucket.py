"""A bucket, an overflow line and an element, and the one store that links or unlinks."""

from drawing import Drawing


def slots(drawing, x, y, header, last, hue):
    """A cache line as a bucket has it: header, seven tags, seven indices."""
    drawing.box(x, y, 92, 40, header, hue="violet", size=12, radius=2)
    for place in range(7):
        drawing.box(x + 92 + place * 36, y, 36, 40, f"tag{place}", hue="grey", size=11, radius=2)
    for place in range(7):
        shown = last if place == 6 else f"i{place}"
        kind = "amber" if place == 6 and last == "link" else hue
        left = x + 344 + place * 44
        drawing.box(left, y, 44, 40, shown, hue=kind, size=12, radius=2)


def draw():
    drawing = Drawing(
        900,
        452,
        "Bucket, overflow line, element",
        "A bucket is one cache line: a header, seven tags and seven indices. An index names an "
        "element; the last index may instead link to an overflow line of the same shape. One "
        "store turns one into the other.",
    )
    drawing.heading("A bucket is one cache line of 64 bytes; so is an overflow line")
    x = 130
    drawing.text(x - 12, 111, "bucket", size=14, bold=True, anchor="end")
    slots(drawing, x, 86, "header", "link", "blue")
    drawing.text(x + 46, 78, "8 bytes", size=11, hue="soft", anchor="middle")
    drawing.text(x + 92 + 126, 78, "7 x 4 bytes: the hash", size=11, hue="soft", anchor="middle")
    drawing.text(
        x + 344 + 154, 78, "7 x 4 bytes: where the element is", size=11, hue="soft", anchor="middle"
    )

    drawing.text(x - 12, 211, "line", size=14, bold=True, anchor="end")
    slots(drawing, x, 186, "header", "i6", "blue")
    last = x + 344 + 6 * 44 + 22
    drawing.arrow([(last, 126), (last, 156), (x + 46, 156), (x + 46, 186)], "amber")
    drawing.text(x + 344 + 270, 150, "index >= 0xF0000000", size=11, hue="soft", anchor="end")

    drawing.text(x - 12, 311, "element", size=14, bold=True, anchor="end")
    drawing.box(x, 286, 140, 40, "header", "state, version", hue="violet", size=12, radius=2)
    drawing.box(x + 140, 286, 220, 40, "key", "padded to 8 bytes", hue="green", size=12, radius=2)
    drawing.box(x + 360, 286, 292, 40, "value", "padded to 8 bytes", hue="green", size=12, radius=2)
    first = x + 344 + 22
    drawing.arrow([(first, 226), (first, 256), (x + 70, 256), (x + 70, 286)], "blue")

    drawing.text(24, 366, "A miss reads the bucket's cache line, a hit the element's as well.")
    drawing.text(24, 390, "Linking a line is one store: the last index changes from an element to")
    drawing.text(24, 410, "the link, and that element moves into the line first. A reader sees one")
    drawing.text(24, 430, "or the other, never something between, and needs no flag in the header.")
    return drawing
