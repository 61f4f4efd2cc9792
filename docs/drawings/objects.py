"""The states of an object, and pins."""

from drawing import Drawing


def draw():
    drawing = Drawing(
        900,
        430,
        "An object, and the pins that keep it",
        "An object is FREE, then ALLOC (named by a context), then LIVE (one element refers to "
        "it). Given up while pinned it is RETIRED until the last pin ends.",
    )
    drawing.heading("A value that is stored outside its entry: text, bytes, pickles, arrays")
    drawing.box(24, 96, 124, 64, "FREE", "in a free list", hue="grey", size=13)
    drawing.box(230, 96, 150, 64, "ALLOC", "a context names it", hue="violet", size=14)
    drawing.box(500, 96, 168, 64, "LIVE", "an element refers to it", hue="green", size=13)
    drawing.box(740, 96, 136, 64, "RETIRED", "pins keep it", hue="amber", size=14)
    small = {"size": 12, "hue": "soft"}
    drawing.arrow([(148, 118), (230, 118)])
    drawing.text(189, 110, "take", anchor="middle", **small)
    drawing.arrow([(230, 142), (148, 142)])
    drawing.text(189, 160, "free", anchor="middle", **small)
    drawing.arrow([(380, 118), (500, 118)], "green")
    drawing.text(440, 110, "insert, update", anchor="middle", **small)
    drawing.arrow([(500, 142), (380, 142)], "violet")
    drawing.text(440, 160, "replaced, deleted", anchor="middle", **small)
    drawing.arrow([(305, 160), (305, 190), (808, 190), (808, 160)], "amber")
    drawing.text(560, 208, "given up, but a pin keeps it", anchor="middle", **small)
    drawing.arrow([(830, 96), (830, 76), (305, 76), (305, 96)], "violet", dashed=True)
    drawing.text(820, 70, "the last pin ends: a CAS", size=12, hue="soft", anchor="end")

    drawing.text(24, 250, "How a view and a replacement see each other", bold=True)
    drawing.box(24, 266, 250, 36, "view: store the pin", hue="blue")
    drawing.box(324, 266, 116, 36, "fence", hue="grey")
    drawing.box(490, 266, 386, 36, "load the element: unchanged? then it is pinned", hue="blue")
    drawing.box(24, 316, 250, 36, "writer: change the element", hue="violet")
    drawing.box(324, 316, 116, 36, "fence", hue="grey")
    drawing.box(490, 316, 386, 36, "load the pins: none? then free the object", hue="violet")
    for y in (284, 334):
        drawing.arrow([(274, y), (324, y)])
        drawing.arrow([(440, y), (490, y)])
    drawing.text(24, 386, "Each side stores, then loads. At least one sees the other, so no object")
    drawing.text(24, 406, "is freed under a view. A pin of a dead process ends with its recovery.")
    return drawing
