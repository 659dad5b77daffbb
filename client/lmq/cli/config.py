"""What the command itself takes from the environment; where the broker is, `lmq.config` says."""

from __future__ import annotations

import os
from collections.abc import Mapping


def wants_no_color() -> bool:
    """Tell whether this person wants no colour anywhere (https://no-color.org)."""
    return bool(os.environ.get("NO_COLOR"))


def child_environment(changes: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for a daemon that is started from here: ours, with changes."""
    return {**os.environ, "PYTHONUNBUFFERED": "1", **changes}


def lmq_variables() -> dict[str, str]:
    """Return the variables that are set and meant for lmq."""
    return {name: value for name, value in sorted(os.environ.items()) if name.startswith("LMQ_")}
