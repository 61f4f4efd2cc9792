"""The scenes: what the explorer plays. Names say what happens in them.

SHORT is what every run of the tests plays, LONG takes minutes.
"""

from scenes_beside import LARGE_BESIDE, STANDING_BESIDE
from scenes_claiming import CLAIMING, CLAIMING_LARGE
from scenes_dying import DYING
from scenes_living import LIVING
from scenes_long import LARGE
from scenes_sweeping import SWEEPING

SHORT = LIVING | DYING | CLAIMING | STANDING_BESIDE | SWEEPING
LONG = LARGE | CLAIMING_LARGE | LARGE_BESIDE
