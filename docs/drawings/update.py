"""The life of an update: its stores in order, and what a kill after each of them means."""

from drawing import Drawing

STEPS = [
    ("1", "redo buffer", "= new value"),
    ("2", "context names", "the element"),
    ("3", "header: LIVE", "to UPD, by CAS"),
    ("4", "value = new,", "word by word"),
    ("5", "header: UPD", "to LIVE"),
]
LEFT, STEP, WIDTH = 148, 146, 134


def row(drawing, y, name, cells, height=34):
    drawing.text(LEFT - 14, y + height / 2 + 5, name, anchor="end", bold=True, size=12.5)
    for place, (label, hue) in enumerate(cells):
        x = LEFT + place * STEP
        lines = label if isinstance(label, tuple) else (label,)
        drawing.rect(x, y, WIDTH, height, hue, radius=4)
        first = y + height / 2 + 4.5 - (len(lines) - 1) * 8
        for line, text in enumerate(lines):
            drawing.text(x + WIDTH / 2, first + line * 16, text, size=12, anchor="middle")


def draw():
    drawing = Drawing(
        900,
        440,
        "The life of an update",
        "Five stores. Killed after the first or second, nothing has happened; after the third "
        "the new value counts, and recovery copies it; after the fifth all is done.",
    )
    drawing.heading("m[key] = value, for a value of more than one word. After each step:")
    for place, (number, first, second) in enumerate(STEPS):
        x = LEFT + place * STEP
        hue = "green" if number == "3" else "grey"
        drawing.box(x, 80, WIDTH, 54, f"{number}  {first}", second, hue=hue, size=12.5)
        if place:
            drawing.arrow([(x - STEP + WIDTH, 107), (x, 107)])
    row(
        drawing,
        160,
        "header",
        [("LIVE, v", "grey")] * 2 + [("UPD, v+1", "amber")] * 2 + [("LIVE, v+2", "grey")],
    )
    row(
        drawing,
        206,
        "value in place",
        [("old", "blue")] * 3 + [("old and new", "red"), ("new", "green")],
    )
    row(
        drawing,
        252,
        "a reader gets",
        [("old", "blue")] * 2 + [("new, from redo", "green")] * 2 + [("new", "green")],
    )
    row(
        drawing,
        298,
        "killed here",
        [
            (("nothing to do:", "not done"), "blue"),
            (("nothing to do:", "not done"), "blue"),
            (("recovery goes on", "with 4: done"), "green"),
            (("recovery does", "4 again: done"), "green"),
            (("nothing to do:", "done"), "green"),
        ],
        height=46,
    )
    x = LEFT + 2 * STEP - (STEP - WIDTH) / 2
    drawing.line([(x, 150), (x, 362)], "green", weight=2, dashed=True)
    drawing.text(x, 380, "the commit", anchor="middle", hue="green", bold=True)
    drawing.text(24, 406, "A reader loads the header again after the copy: if the version")
    drawing.text(
        24, 424, "has changed, it starts again. A writer that was stopped delays no reader."
    )
    return drawing
