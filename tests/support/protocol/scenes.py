"""The scenes that the explorer plays. Their names say what happens in them.

Every run of the tests plays SHORT; LONG takes minutes.
"""

from support.protocol.scenes_beside import LARGE_BESIDE, STANDING_BESIDE
from support.protocol.scenes_claiming import CLAIMING, CLAIMING_LARGE
from support.protocol.scenes_dying import DYING
from support.protocol.scenes_holding import HOLDING
from support.protocol.scenes_living import LIVING
from support.protocol.scenes_long import LARGE
from support.protocol.scenes_sweeping import SWEEPING
from support.protocol.scenes_waiting import WAITING

SHORT = LIVING | DYING | CLAIMING | STANDING_BESIDE | SWEEPING | WAITING | HOLDING
LONG = LARGE | CLAIMING_LARGE | LARGE_BESIDE
