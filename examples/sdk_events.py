"""Follow what happens to jobs, over restarts of the broker, and go on later where this left off.

    python examples/sdk_events.py [FILE]

FILE keeps the cursor: after a break the program reads on from there, and misses and repeats nothing.
"""

import sys
from pathlib import Path

import lmq

file = Path(sys.argv[1]) if len(sys.argv) > 1 else None
since = int(file.read_text()) if file and file.exists() else 0

with lmq.Client() as q, q.events(since=since, kinds=["accepted", "done", "dead"], timeout_s=3) as events:
    try:
        for event in events:
            print(event.seq, event.kind, event.job_id, event.user)
            if file:
                file.write_text(str(events.cursor))
    except lmq.WaitTimeout:
        print("nothing new for 3 s")
