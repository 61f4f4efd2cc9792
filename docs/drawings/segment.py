"""The segment of a map of a million entries, to scale: what is reserved, and what is committed."""

from drawing import Drawing

MIB = 1 << 20
# A map of 8-byte keys and values, max_entries=1_000_000, two depots: geometry_compute().
REGIONS = [
    ("header", 4096, "soft"),
    ("process slots", 1024 * 64, "amber"),
    ("contexts", 4096 * 320, "violet"),
    ("depots", 4096, "soft"),
    ("block words", 40960, "soft"),
    ("buckets", 285_952 * 64, "blue"),
    ("overflow lines", 183_104 * 64, "grey"),
    ("elements", 24_023_040, "green"),
]
COMMITTED = [("empty", 28_672), ("1,000", 77_824), ("100,000", 4_395_008), ("999,999", 43_122_688)]


def draw():
    drawing = Drawing(
        900,
        470,
        "The segment, to scale",
        "One sparse file: header, process slots, contexts, depots and block words take little; "
        "buckets, overflow lines and elements take nearly everything. Memory is committed as "
        "the map fills.",
    )
    drawing.heading("A map of 8-byte keys and values with max_entries = 1,000,000")
    left, width = 40, 820
    total = sum(size for _, size, _ in REGIONS)

    drawing.text(left, 96, f"Reserved addresses: {total / MIB:.0f} MiB", bold=True)
    x = left
    places = {}
    for name, size, hue in REGIONS:
        share = width * size / total
        places[name] = (x, share)
        if share > 60:
            label = f"{size / MIB:.0f} MiB"
            drawing.box(x, 108, share, 56, name, label, hue=hue, size=14, radius=2)
        elif share > 1:
            drawing.rect(x, 108, share, 56, hue, radius=0, weight=0.8)
        x += share

    small = REGIONS[:5]
    drawing.text(left, 214, "The first 1.3 MiB, enlarged", bold=True)
    end = places["buckets"][0]
    drawing.line([(left, 164), (left, 226)], dashed=True)
    drawing.line([(end, 164), (left + width, 226)], dashed=True)
    sizes = sum(size for _, size, _ in small)
    x = left
    for name, size, hue in small:
        share = width * size / sizes
        shown = {"soft": "grey"}.get(hue, hue)
        drawing.rect(x, 226, share, 40, shown, radius=0, weight=0.8)
        places[name] = (x, share)
        x += share
    labels = [
        ("header", 40, "header"),
        ("process slots", 100, "1,024 process slots"),
        ("contexts", 420, "4,096 contexts: the operation of each thread, and its redo buffer"),
        ("block words", 860, "depots, block words"),
    ]
    for name, x, label in labels:
        place, share = places[name]
        anchor = {"block words": "end", "header": "start", "contexts": "middle"}.get(name, "start")
        drawing.line([(place + share / 2, 266), (place + share / 2, 276)])
        y = 292 if name != "process slots" else 310
        if name == "process slots":
            drawing.line([(place + share / 2, 266), (place + share / 2, 298)])
            x = place + share / 2 - 6
        drawing.text(x, y, label, size=12, hue="soft", anchor=anchor)

    drawing.text(left, 350, "Committed memory, by the number of entries", bold=True)
    largest = COMMITTED[-1][1]
    for place, (entries, size) in enumerate(COMMITTED):
        y = 362 + place * 23
        drawing.text(left + 62, y + 14, entries, size=12, anchor="end", hue="soft")
        bar = max(2, 640 * size / largest)
        drawing.rect(left + 72, y + 2, bar, 16, "green", radius=2)
        shown = f"{size / MIB:.1f} MiB" if size > MIB else f"{size // 1024} KiB"
        drawing.text(left + 80 + bar, y + 15, shown, size=12)
    return drawing
