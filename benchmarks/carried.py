"""What was carried to a machine without a network (`benchmarks/carry.sh`). Importing this puts it on the path."""

import os
import sys
from pathlib import Path

__all__ = ["FOLDER", "paths"]

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "carried"


def _is_for_this_python() -> bool:
    made_for = FOLDER / "python-version"
    return made_for.exists() and made_for.read_text().strip() == f"{sys.version_info.major}.{sys.version_info.minor}"


def paths() -> str:
    """PYTHONPATH for the processes of a visit: the tree and what is carried, before what the machine has."""
    carried = [str(FOLDER)] if _is_for_this_python() else []
    return os.pathsep.join([str(ROOT), *carried, *filter(None, [os.environ.get("PYTHONPATH")])])


if _is_for_this_python():
    sys.path.insert(0, str(FOLDER))
