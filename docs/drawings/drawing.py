"""Drawings as SVG: boxes, texts, arrows, in colours that follow the reader's light or dark theme.

A drawing is a module beside this one with a function draw() that returns a Drawing; make.py writes
them all. Text is measured roughly, and a label that does not fit into its box is an error.
"""

import math
from html import escape

SANS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
MONO = "ui-monospace, 'SF Mono', Menlo, Consolas, 'DejaVu Sans Mono', monospace"
LETTER = 0.56  # mean width of a letter over its size, in the widest of the fonts above
LETTER_MONO = 0.602
LETTER_BOLD = 0.63

# Of each colour: the fill of a box, and its stroke, which also is the colour of text and arrows.
LIGHT = {
    "paper": ("#ffffff", "#d5dae0"),
    "ink": ("#1f2328", "#1f2328"),
    "soft": ("#59636e", "#59636e"),
    "grey": ("#f3f5f7", "#8b949e"),
    "blue": ("#e3effd", "#2f6fc4"),
    "green": ("#e0f4e6", "#26824a"),
    "amber": ("#fdf1d6", "#a86c0c"),
    "red": ("#fde5e2", "#c23b28"),
    "violet": ("#efe8fb", "#7450b8"),
}
DARK = {
    "paper": ("#161a20", "#2d333b"),
    "ink": ("#e6e9ee", "#e6e9ee"),
    "soft": ("#9aa4b1", "#9aa4b1"),
    "grey": ("#22272e", "#768390"),
    "blue": ("#173152", "#6cabf7"),
    "green": ("#153a26", "#5cc983"),
    "amber": ("#3f310f", "#e0b24c"),
    "red": ("#48211c", "#f18d7c"),
    "violet": ("#30264a", "#b399ee"),
}


def rules(colours):
    """The style rules of one theme."""
    lines = []
    for hue, (fill, stroke) in colours.items():
        lines.append(f".{hue}{{fill:{fill};stroke:{stroke}}}")
        lines.append(f".t-{hue}{{fill:{stroke};stroke:none}}")
        lines.append(f".l-{hue}{{fill:none;stroke:{stroke}}}")
    return "\n".join(lines)


def number(value):
    """A coordinate as short as it can be written."""
    return f"{value:.1f}".rstrip("0").rstrip(".")


def width_of(text, size, mono=False, bold=False):
    letter = LETTER_MONO if mono else LETTER_BOLD if bold else LETTER
    return len(text) * size * letter


class Drawing:
    """A picture of this many units, with a title for people who cannot see it."""

    def __init__(self, width, height, title, description):
        self.width, self.height = width, height
        self.title, self.description = title, description
        self.parts = []

    def add(self, markup):
        self.parts.append(markup)

    # ---- shapes ----

    def rect(self, x, y, width, height, hue="grey", *, radius=6, dashed=False, weight=1.2):
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self.add(
            f'<rect class="{hue}" x="{number(x)}" y="{number(y)}" width="{number(width)}" '
            f'height="{number(height)}" rx="{number(radius)}" stroke-width="{weight}"{dash}/>'
        )

    def line(self, points, hue="soft", *, weight=1.4, dashed=False):
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        places = " ".join(f"{number(x)},{number(y)}" for x, y in points)
        self.add(
            f'<polyline class="l-{hue}" points="{places}" stroke-width="{weight}" '
            f'stroke-linejoin="round"{dash}/>'
        )

    def arrow(self, points, hue="soft", *, weight=1.6, dashed=False, both=False):
        """A line with a head at its last point, and if both at its first."""
        points = list(points)
        ends = [(-2, -1), (1, 0)] if both else [(-2, -1)]
        shortened = list(points)
        heads = []
        for before, at in ends:
            (x0, y0), (x1, y1) = points[before], points[at]
            angle = math.atan2(y1 - y0, x1 - x0)
            shortened[at] = (x1 - 7 * math.cos(angle), y1 - 7 * math.sin(angle))
            heads.append((x1, y1, angle))
        self.line(shortened, hue, weight=weight, dashed=dashed)
        for x, y, angle in heads:
            corners = [(x, y)]
            for turn in (2.72, -2.72):
                corners.append((x + 9.5 * math.cos(angle + turn), y + 9.5 * math.sin(angle + turn)))
            places = " ".join(f"{number(a)},{number(b)}" for a, b in corners)
            self.add(f'<polygon class="t-{hue}" points="{places}"/>')

    def dot(self, x, y, hue="ink", radius=4):
        self.add(
            f'<circle class="t-{hue}" cx="{number(x)}" cy="{number(y)}" r="{number(radius)}"/>'
        )

    def cross(self, x, y, hue="red", arm=6):
        self.line([(x - arm, y - arm), (x + arm, y + arm)], hue, weight=2.4)
        self.line([(x - arm, y + arm), (x + arm, y - arm)], hue, weight=2.4)

    def brace(self, left, right, y, hue="soft", depth=7):
        """A bracket below what stands from left to right."""
        middle = (left + right) / 2
        self.line([(left, y), (left, y + depth), (right, y + depth), (right, y)], hue, weight=1.2)
        self.line([(middle, y + depth), (middle, y + 2 * depth)], hue, weight=1.2)

    # ---- words ----

    def text(self, x, y, text, *, size=13, hue="ink", anchor="start", mono=False, bold=False):
        """One line, whose base is at y."""
        weight = ' font-weight="600"' if bold else ""
        family = ' font-family="' + escape(MONO) + '"' if mono else ""
        width = width_of(text, size, mono, bold)
        left = x - width * {"start": 0, "middle": 0.5, "end": 1}[anchor]
        if left < 0 or left + width > self.width:
            raise ValueError(f"{text!r} leaves the drawing {self.title!r}")
        self.add(
            f'<text class="t-{hue}" x="{number(x)}" y="{number(y)}" font-size="{number(size)}" '
            f'text-anchor="{anchor}"{weight}{family}>{escape(text, quote=False)}</text>'
        )

    def lines(self, x, y, texts, *, step=18, **style):
        """Lines below one another; the base of the first is at y."""
        for place, text in enumerate(texts):
            self.text(x, y + place * step, text, **style)

    def heading(self, subtitle=None):
        """The title, as the drawing shows it."""
        self.text(24, 36, self.title, size=18, bold=True)
        if subtitle:
            self.text(24, 58, subtitle, hue="soft")

    def box(self, x, y, width, height, *texts, hue="grey", size=13, mono=False, **shape):
        """A box with lines in its middle; the first stands out if there are others."""
        self.rect(x, y, width, height, hue, **shape)
        step = size * 1.35
        base = y + height / 2 + size * 0.36 - step * (len(texts) - 1) / 2
        for place, text in enumerate(texts):
            first = place == 0 and len(texts) > 1
            small = size if place == 0 else size - 1.5
            if width_of(text, small, mono, first) > width - 6:
                raise ValueError(f"{text!r} does not fit into its box in {self.title!r}")
            self.text(
                x + width / 2,
                base + place * step,
                text,
                size=small,
                anchor="middle",
                mono=mono,
                bold=first,
                hue="ink" if place == 0 else "soft",
            )

    # ---- the file ----

    def svg(self, theme=None):
        """The whole file; theme is LIGHT or DARK, or None for what the reader's system says."""
        style = rules(theme or LIGHT)
        if theme is None:
            style += "\n@media (prefers-color-scheme: dark){\n" + rules(DARK) + "\n}"
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
            f'width="{self.width}" height="{self.height}" role="img" '
            f'font-family="{escape(SANS)}">\n'
            f"<title>{escape(self.title, quote=False)}</title>\n"
            f"<desc>{escape(self.description, quote=False)}</desc>\n<style>\n{style}\n</style>\n"
            f'<rect class="paper" x="0.5" y="0.5" width="{self.width - 1}" '
            f'height="{self.height - 1}" rx="10"/>\n'
        )
        return head + "\n".join(self.parts) + "\n</svg>\n"
