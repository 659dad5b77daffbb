"""A small pipeline: a chat that starts when two embeddings are done, and is cancelled if one of them fails."""

import lmq

CHAPTERS = ["Stairs are at least 1.20 m wide.", "Doors open in the direction of escape."]

parts = [draft for chapter in CHAPTERS for draft in lmq.embed_drafts(chapter)]
# Its priority is that of its parents, too, as long as it waits for them.
last = lmq.chat_draft(
    "Say in one sentence that the new norms are in.", depends_on=parts, priority="interactive"
)

with lmq.Client() as q:
    *embeddings, report = q.submit_many([*parts, last], atomic=True)  # all or none
    for job in (*embeddings, report):
        status = job.status()
        print(f"{job.id} {status.task_type} is {status.state}, waits for {len(status.waits_for)} jobs")
    try:
        print(report.result(timeout_s=60))
    except lmq.JobCancelled as error:
        print(error)  # .. was cancelled: its parent 3HGA9T is dead
