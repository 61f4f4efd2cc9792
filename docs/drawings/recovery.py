"""Recovery: how a death is found, and in which order its traces are repaired."""

from drawing import Drawing

FIND = [
    ("a word stays locked", "its owner bits name a"),
    ("context", "which belongs to a"),
    ("process slot", "ask the kernel: it is"),
    ("dead", "its lock has gone"),
]
ORDER = [
    ("region", "violet", "its two watermarks are right at every moment: unlock"),
    ("depot, credits", "violet", "put a detached list back; complete moved credits; unlock"),
    (
        "block",
        "violet",
        "a block without memory is a hole; else a take or give is undone or finished",
    ),
    ("budget", "violet", "the word becomes what the context said it would be; unlock"),
    ("element", "blue", "UPD: copy redo to value, LIVE.   ULOCK, LOCKED: LIVE"),
    ("bucket: insert", "blue", "a slot names the element: done.   Else: the element is freed"),
    ("bucket: delete", "blue", "the element is DEAD: clear its slot.   Else: not done"),
    ("bucket: split", "blue", "the child has its level: finish.   Else: undo"),
    ("objects, pins", "green", "what the context still owns is freed; its pins end"),
]


def draw():
    drawing = Drawing(
        900,
        556,
        "Recovery",
        "A waiter finds a locked word, its context, the process slot, and asks the kernel "
        "whether that process lives. Then the dead process's contexts are recovered, innermost "
        "lock first. Each step looks at shared state only and may be repeated.",
    )
    drawing.heading("The next process that meets a dead owner recovers it: no daemon, no parent")
    for place, (first, second) in enumerate(FIND):
        x = 24 + place * 222
        hue = "red" if place == 3 else "grey"
        drawing.box(x, 80, 186, 56, first, second, hue=hue, size=13)
        if place:
            drawing.arrow([(x - 36, 108), (x, 108)])
    drawing.arrow([(783, 136), (783, 160), (130, 160), (130, 184)], "red")
    drawing.text(456, 153, "claim its recovery: one compare-and-swap", size=12, anchor="middle")
    for place, (name, hue, what) in enumerate(ORDER):
        y = 184 + place * 36
        drawing.box(24, y, 160, 30, name, hue=hue, size=13)
        drawing.text(204, y + 20, what, size=13)
    drawing.text(
        24, 528, "Each row acts only if the word itself names the dead context as its owner."
    )
    drawing.text(
        24, 546, "If the recovering process dies too, the next one starts again from the top."
    )
    return drawing
