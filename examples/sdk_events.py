"""Follow what happens to jobs, over restarts of the broker, and go on later where this left off."""

import sys
from pathlib import Path

import lmq

# Where this program got to: after a break it reads on from here, and misses and repeats nothing.
cursor_file = Path("events.cursor")
since = int(cursor_file.read_text()) if cursor_file.exists() else 0
count = int(sys.argv[1]) if len(sys.argv) > 1 else 20

with lmq.Client() as q, q.events(since=since, kinds=["accepted", "done", "dead"], timeout_s=10) as events:
    try:
        for event in events:
            print(event.seq, event.kind, event.job_id, event.user)
            cursor_file.write_text(str(events.cursor))
            count -= 1
            if not count:
                break
    except lmq.WaitTimeout:
        print("nothing new")
