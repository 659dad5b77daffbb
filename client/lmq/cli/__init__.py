"""The command `lmq`. One file per command or noun; this one holds the way in and imports nothing heavy.

The table of commands is in `root`; what all of them share is in `session` (options, output), `params` (what people
type), `humane` and `tables` (what people read), `errors` (sentences and exit statuses).
"""

from __future__ import annotations


def main() -> None:
    """Run the command line of this process and exit."""
    from lmq.cli.errors import hide_tracebacks
    from lmq.cli.root import root

    hide_tracebacks()
    root.main(prog_name="lmq")
