"""The folders of the sources as layers: each uses those below it."""

from drawing import Drawing

LAYERS = [
    ("shmrhash/cli", "grey", "the command line: that of bpftool; ls, top, check, export, doctor"),
    ("shmrhash", "amber", "RHashMap, SharedDict, SharedCounter; files, names, types, errors"),
    ("python", "amber", "the extension's classes: the only place that raises, or takes the GIL"),
    ("processes", "red", "which processes are alive; waiting, recovery, attaching, check()"),
    ("cells", "green", "the shared state of locks, semaphores, conditions and the like"),
    ("map", "green", "chains, elements, the table; read, write, remove, sections, walks"),
    ("memory", "violet", "operations and lock words; regions, pools, depots, objects"),
    ("segment", "blue", "what lies where: layout, geometry, header, the file"),
    ("machine", "blue", "atomics, system calls, hashing, arithmetic on numbers"),
]


def draw():
    drawing = Drawing(
        900,
        548,
        "The layers of the sources",
        "From below: machine, segment, memory, map, cells, processes, python; then the Python "
        "package and its command line. Each layer uses only those below it.",
    )
    drawing.heading("Each layer uses the layers below it, and none above")
    for place, (name, hue, what) in enumerate(LAYERS):
        y = 80 + place * 48 + (12 if place > 1 else 0)
        inset = 24
        drawing.rect(inset, y, 740, 40, hue)
        drawing.text(inset + 16, y + 25, name, size=14, bold=True, mono=True)
        drawing.text(inset + 160, y + 25, what, size=13)
    for top, bottom, lines in (
        (80, 168, ["Python", "package"]),
        (188, 516, ["cython/:", "one C file,", "no Python", "object", "below", "python"]),
    ):
        drawing.line([(772, top), (780, top), (780, bottom), (772, bottom)])
        start = (top + bottom) / 2 - (len(lines) - 1) * 9 + 4
        drawing.lines(790, start, lines, size=12.5, hue="soft")
    return drawing
