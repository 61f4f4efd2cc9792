"""The program examples/web_cache.py, with a real gunicorn."""

import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "web_cache.py"
TIMEOUT_S = 240


def test_gunicorn_renders_each_page_once_beside_a_kill():
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), "--requests", "800", "--pages", "50"],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "was begun 2 times, finished once" in done.stdout
    assert "wrong answers: 0" in done.stdout
