"""The command `lmq`. One file per command or noun; this one holds the way in and imports nothing heavy.

The table of commands is in `root`; what all of them share is in `session` (options, output), `params` (what people
type), `humane` and `tables` (what people read), `errors` (sentences and exit statuses).
"""

from __future__ import annotations


def main() -> None:
    """Run the command line of this process and exit."""
    import signal

    # Ctrl-C during the imports below would print where they were: until they are done it ends us without a word.
    # A parent that had it ignored keeps it ignored.
    is_ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_ours:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from lmq.cli.errors import hide_tracebacks
    from lmq.cli.root import root

    hide_tracebacks()
    if is_ours:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    root.main(prog_name="lmq")
