"""What MkDocs asks while it builds the site: see mkdocs.yml."""

import re
import sys
from pathlib import Path

from mkdocs.structure.files import File

sys.path.insert(0, str(Path(__file__).parent))

import reference

ROOT = Path(__file__).resolve().parents[2]
PLOTS = "plots"  # where the site has the figures that the benchmarks draw


def on_files(files, config):
    """Add the benchmarks' plots, which stand beside the benchmarks."""
    for path in sorted(ROOT.glob("benchmarks/plots/*.svg")):
        files.append(File.generated(config, f"{PLOTS}/{path.name}", content=path.read_text()))
    return files


def on_page_markdown(markdown, page, config, files):
    """Put what is made from the package into the pages that ask for it."""
    if page.file.src_uri.startswith("reference/"):
        markdown = reference.expand(markdown)
    if "{{ promises }}" in markdown:
        rows = re.findall(r"^\|.*\|$", (ROOT / "DESIGN.md").read_text(), re.MULTILINE)
        first = rows.index("| id | promise |")
        last = max(place for place, row in enumerate(rows) if re.match(r"\| [A-Z]\d \|", row))
        markdown = markdown.replace("{{ promises }}", "\n".join(rows[first : last + 1]))
    up = "../" * page.file.src_uri.count("/")
    return re.sub(r"\((?:\.\./)*benchmarks/plots/", f"({up}{PLOTS}/", markdown)
