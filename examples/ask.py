"""Ask one question and wait for the answer: the example on the README's first screen."""

import lmq

with lmq.Client() as q:
    job = q.chat("Why is the sky blue?")
    print(job.id, job.result(timeout_s=60).text)
