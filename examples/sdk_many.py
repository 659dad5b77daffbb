"""Submit a thousand jobs at once, take each as it ends, leave in between: the jobs go on without you."""

import lmq

with lmq.Client() as q:
    jobs = q.submit_many(lmq.draft("echo", {"n": n}, priority="background") for n in range(1000))
    print(f"{len(jobs)} jobs are on the broker's disk")
    for done, job in enumerate(q.as_completed(jobs), 1):
        if done % 250 == 0:
            print(f"{done} done, the last was {job.id}: {job.result()}")
