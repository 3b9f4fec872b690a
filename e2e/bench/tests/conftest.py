"""The bench is scripts, not a package: its tests find its modules where Python finds them for the scripts."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
