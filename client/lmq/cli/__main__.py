"""`python -m lmq.cli`: the same as `lmq`, wherever the script may lie. `lmq up` and the demo start daemons this way."""

from __future__ import annotations

from lmq.cli import main

if __name__ == "__main__":
    main()
