"""The benchmarks are a package of the repository root, which is on the path only when pytest runs as a module."""

import sys
from pathlib import Path

_ROOT = str(Path(__file__).resolve().parents[3])
if _ROOT not in sys.path:
    sys.path.append(_ROOT)
