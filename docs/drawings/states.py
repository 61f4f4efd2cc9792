"""The states of an element, and the code that stores each change."""

from drawing import Drawing


def draw():
    drawing = Drawing(
        900,
        500,
        "The states of an element",
        "An element goes from FREE to ALLOC to LIVE. Writers take it from LIVE to ULOCK, UPD or "
        "LOCKED and back to LIVE; a deletion makes it DEAD, and then it is FREE again.",
    )
    drawing.heading(
        "Each change is one store or compare-and-swap of the header, and raises the version"
    )
    drawing.box(24, 226, 110, 60, "FREE", "in a depot", hue="grey", size=15)
    drawing.box(206, 226, 116, 60, "ALLOC", "one context's", hue="violet", size=15)
    drawing.box(402, 226, 124, 60, "LIVE", "in the map", hue="green", size=15, weight=2)
    drawing.box(760, 226, 116, 60, "DEAD", "deleted", hue="red", size=15)
    drawing.box(262, 96, 134, 60, "ULOCK", "one word changes", hue="blue", size=15)
    drawing.box(556, 96, 158, 60, "UPD", "new value in redo", hue="amber", size=15)
    drawing.box(402, 370, 154, 60, "LOCKED", "a section is open", hue="blue", size=15)

    small = {"size": 12, "hue": "soft"}
    drawing.arrow([(134, 246), (206, 246)])
    drawing.text(170, 238, "take", anchor="middle", **small)
    drawing.arrow([(206, 268), (134, 268)])
    drawing.text(170, 286, "give", anchor="middle", **small)
    drawing.arrow([(322, 256), (402, 256)])
    drawing.text(362, 248, "insert", anchor="middle", **small)
    drawing.text(362, 274, "bucket's lock", anchor="middle", size=11, hue="soft")

    drawing.arrow([(414, 226), (340, 156)], "blue")
    drawing.text(352, 200, "CAS", anchor="end", **small)
    drawing.arrow([(372, 156), (440, 226)], "blue")
    drawing.text(430, 190, "store", **small)
    drawing.arrow([(396, 116), (556, 116)], "amber")
    drawing.text(476, 108, "store: commit", anchor="middle", **small)
    drawing.arrow([(496, 226), (584, 156)], "amber")
    drawing.text(552, 206, "CAS: commit", **small)
    drawing.arrow([(634, 156), (634, 240), (526, 240)], "green")
    drawing.text(642, 196, "store:", **small)
    drawing.text(642, 212, "copied", **small)

    drawing.arrow([(440, 286), (440, 370)], "blue")
    drawing.text(432, 332, "CAS: open", anchor="end", **small)
    drawing.arrow([(488, 370), (488, 286)], "blue")
    drawing.text(496, 332, "CAS: abandon", **small)
    drawing.arrow([(556, 388), (704, 388), (704, 156)], "amber")
    drawing.text(600, 380, "CAS: commit", **small)
    drawing.arrow([(526, 268), (760, 268)], "red")
    drawing.text(536, 286, "delete: bucket's lock", **small)
    drawing.arrow([(556, 412), (800, 412), (800, 286)], "red")
    drawing.text(600, 430, "delete: the section ends with KeyGone", **small)
    drawing.arrow([(842, 286), (842, 476), (78, 476), (78, 286)])
    drawing.text(200, 468, "the slot is cleared, the element goes to a depot", **small)
    return drawing
