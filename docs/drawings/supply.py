"""Where an entry's memory and its right to exist come from: credits, depots, blocks."""

from drawing import Drawing


def draw():
    drawing = Drawing(
        900,
        470,
        "An entry needs a credit and an element",
        "Credits move from the header to the depots, 32 at a time; elements move from the pool's "
        "blocks to the depots, about 50 at a time. An insert takes one of each by one "
        "store.",
    )
    drawing.heading("An insert takes both from the depot of its CPU, by one store")
    drawing.text(24, 98, "The right to add an entry", bold=True)
    drawing.box(24, 112, 190, 64, "header: credits", "max_entries at first", hue="green", size=14)
    drawing.text(24, 258, "The memory for it", bold=True)
    drawing.box(24, 272, 84, 64, "tmpfs", "/dev/shm", hue="grey", size=14)
    drawing.box(160, 272, 162, 64, "block", "12 to 64 KiB", hue="amber", size=14)
    for place in range(8):
        hue = "paper" if place in (1, 2, 5) else "amber"
        drawing.rect(160 + place * 20.2, 344, 18, 14, hue, radius=2, weight=1)
    drawing.text(160, 376, "free elements, lowest blocks first", size=12, hue="soft")
    drawing.arrow([(108, 304), (160, 304)])
    drawing.text(134, 326, "commit", size=12, hue="soft", anchor="middle")

    for place in range(3):
        y = 106 + place * 92
        drawing.rect(430, y, 190, 76, "violet")
        drawing.text(442, y + 22, f"depot of CPU {place}", size=13, bold=True)
        drawing.text(442, y + 44, "credits", size=12, hue="soft")
        drawing.text(442, y + 64, "elements", size=12, hue="soft")
        for dot in range((5, 2, 4)[place]):
            drawing.dot(518 + dot * 18, y + 40, "green", 5)
        for dot in range((3, 5, 4)[place]):
            drawing.rect(512 + dot * 18, y + 54, 12, 12, "amber", radius=2, weight=1.2)
    drawing.arrow([(214, 144), (430, 144)], "green")
    drawing.text(322, 136, "32 at a time", size=12, hue="soft", anchor="middle")
    drawing.arrow([(322, 304), (376, 304), (376, 160), (430, 160)], "amber", both=True)
    drawing.text(336, 326, "about 50", size=12, hue="soft")
    drawing.text(336, 342, "at a time", size=12, hue="soft")

    drawing.box(726, 152, 150, 84, "the map", "entries", hue="blue", size=16)
    drawing.arrow([(620, 172), (726, 172)], "blue")
    drawing.text(673, 164, "insert", size=12, hue="soft", anchor="middle")
    drawing.arrow([(726, 216), (620, 216)], "blue")
    drawing.text(673, 234, "delete", size=12, hue="soft", anchor="middle")

    drawing.box(430, 392, 446, 54, "header's credits + depots' credits + entries", hue="green")
    drawing.text(653, 384, "always equal to max_entries:", size=12, hue="soft", anchor="middle")
    drawing.lines(
        24,
        412,
        ["E2BIG (MapFull) is returned only when the", "header and every depot have no credit."],
        size=13,
    )
    return drawing
