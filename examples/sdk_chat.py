"""Ask a question, watch the answer come, look at what it took. Needs a broker and a worker: `lmq up` or `lmq demo`."""

import lmq

with lmq.Client() as q:
    job = q.chat("Why is the sky blue? One sentence.", priority="interactive")
    print(f"job {job.id}, {job.status().state}")
    for piece in job.stream():
        print(piece, end="", flush=True)
    answer = job.result()
    print(f"\n{answer.usage.completion_tokens} tokens by {answer.model}")
