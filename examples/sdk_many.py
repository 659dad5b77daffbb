"""Submit a thousand jobs at once, take each as it ends, leave in between: the jobs go on without you.

Echo jobs need no model, only a worker that gives payloads back: `lmq worker --backend echo`. Those that none has
started within a minute expire, and all are gone after an hour.
"""

import lmq

with lmq.Client() as q:
    jobs = q.submit_many(
        lmq.draft("echo", {"n": n}, priority="background", expires_s=60, keep_s=3600) for n in range(1000)
    )
    print(f"{len(jobs)} jobs are on the broker's disk")
    try:
        for done, job in enumerate(q.as_completed(jobs), 1):
            answer = job.result()
            if done % 250 == 0:
                print(f"{done} done, the last was {job.id}: {answer}")
    except lmq.JobExpired as error:
        print(f"{error}; type: lmq worker --backend echo")
