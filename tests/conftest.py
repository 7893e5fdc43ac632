"""Puts the repository root on the import path, so that `pytest` finds the flat scripts from anywhere."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
