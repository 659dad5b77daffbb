"""The log line that ends each job, with everything about it: the line one would want to grep."""

import logging
from collections.abc import Iterable

from lmq_broker.core.records import JobChanged, Record
from lmq_proto.ids import to_text
from lmq_proto.states import FINAL

log = logging.getLogger("lmq.broker.jobs")


def write(records: Iterable[Record]) -> None:
    """Log every job that reached a final state in these records."""
    if not log.isEnabledFor(logging.INFO):
        return
    for record in records:
        if isinstance(record, JobChanged) and record.job.state in FINAL:
            job = record.job
            started_ms = job.started_at_ms or job.finished_at_ms
            log.info("job_ended", extra={"fields": {
                "job_id": to_text(job.id), "state": str(job.state), "user": job.user, "queue": job.queue,
                "task_type": job.task_type, "model": job.model, "worker": job.worker, "attempts": job.attempt,
                "failures": job.failures, "queued_ms": started_ms - job.created_at_ms,
                "leased_ms": job.finished_at_ms - started_ms, "result_bytes": job.result_bytes,
            }})  # fmt: skip
