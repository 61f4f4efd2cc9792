"""Processes around one map: the first picture of README.md."""

from drawing import Drawing

WORKERS = [
    ("web worker", "d[key]", "blue", "reads take no lock"),
    ("web worker", "d[key] = value", "green", "each write is atomic"),
    ("batch job", "c.inc(key)", "green", "no addition is lost"),
    ("killed worker", "kill -9", "red", "the next process recovers it"),
]


def draw():
    drawing = Drawing(
        860,
        344,
        "Many processes, one map, no server",
        "Four processes read and write one map in /dev/shm. One of them was killed in the middle "
        "of a write; the others go on.",
    )
    top, height, step = 24, 62, 78
    for place, (name, call, hue, remark) in enumerate(WORKERS):
        y = top + place * step
        middle = y + height / 2
        drawing.box(24, y, 168, height, name, call, hue=hue, size=14)
        if hue == "red":
            drawing.line([(192, middle), (330, middle)], "red", dashed=True)
            drawing.cross(342, middle)
        else:
            drawing.arrow([(192, middle), (400, middle)], hue, both=hue == "blue")
        drawing.text(204, middle - 9, remark, size=12, hue="soft")
    drawing.rect(400, 24, 436, 296, "grey", radius=10)
    drawing.text(420, 52, "/dev/shm/sessions", size=15, mono=True, bold=True)
    drawing.text(420, 74, "one file in shared memory", hue="soft")
    for row in range(4):
        for column in range(7):
            used = (row * 5 + column * 3) % 8 < 5
            hue = "blue" if used else "paper"
            drawing.rect(420 + column * 34, 96 + row * 40, 28, 28, hue, radius=4)
    drawing.text(420, 276, "buckets of seven entries,", size=12, hue="soft")
    drawing.text(420, 294, "split and merged one at a time", size=12, hue="soft")
    for place, (first, second) in enumerate(
        [
            ("keys and values", "of any type"),
            ("grows and shrinks", "by itself"),
            ("lasts until", "it is unlinked"),
        ]
    ):
        drawing.box(668, 96 + place * 66, 154, 54, first, second, hue="paper", size=13)
    return drawing
