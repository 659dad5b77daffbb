"""The tables, as peewee models: schema, queries and administration. The hot path has `executemany` on its connection.

Tables hold the current state, not a log, except events: one row per commit with all events of it packed.
"""

import sqlite3
from typing import cast

from peewee import BlobField, CompositeKey, IntegerField, Model, SqliteDatabase, TextField


class Meta(Model):
    """Named values: epoch, broker id, pauses, known models."""

    name = TextField(primary_key=True)
    value = BlobField()


class Jobs(Model):
    """The latest image of every job that is open or kept."""

    number = IntegerField(primary_key=True)
    id = BlobField()
    """Random: not indexed, for the broker knows the number to each id."""
    user = TextField()
    principal = TextField()
    task_type = TextField()
    queue = TextField()
    priority = IntegerField()
    state = TextField()
    order = IntegerField()
    created_at_ms = IntegerField()
    payload_bytes = IntegerField()
    models = TextField()
    """Model names, each followed by a line end."""
    prompt_tokens = IntegerField()
    output_tokens = IntegerField()
    due_at_ms = IntegerField()
    expires_at_ms = IntegerField()
    started_at_ms = IntegerField()
    finished_at_ms = IntegerField()
    deletes_at_ms = IntegerField()
    attempt = IntegerField()
    epoch = IntegerField()
    failures = IntegerField()
    worker = TextField()
    model = TextField()
    result_bytes = IntegerField()
    terms = BlobField()
    """`records.Terms` as MessagePack."""
    past = BlobField()
    """`records.Past` as MessagePack."""


class Payloads(Model):
    """What was submitted."""

    number = IntegerField(primary_key=True)
    payload = BlobField()


class Results(Model):
    """What came out."""

    number = IntegerField(primary_key=True)
    result = BlobField()


class Texts(Model):
    """Pieces of text: some pieces of one attempt in a row."""

    number = IntegerField()
    attempt = IntegerField()
    first = IntegerField()
    last = IntegerField()
    packed = BlobField()

    class Meta:
        """A piece is found by job, attempt and number."""

        primary_key = CompositeKey("number", "attempt", "first")
        without_rowid = True


class Labels(Model):
    """Labels of jobs that have any."""

    name = TextField()
    value = TextField()
    number = IntegerField()

    class Meta:
        """Jobs are found by label."""

        primary_key = CompositeKey("name", "value", "number")
        without_rowid = True


class Keys(Model):
    """Idempotency keys in force."""

    user = TextField()
    key = TextField()
    job_id = BlobField()
    digest = BlobField()

    class Meta:
        """A key belongs to a user."""

        primary_key = CompositeKey("user", "key")
        without_rowid = True


class Tombstones(Model):
    """Ids of deleted jobs, remembered for a while."""

    job_id = BlobField(primary_key=True)
    until_ms = IntegerField()


class Events(Model):
    """Durable events: all of one commit, packed."""

    first = IntegerField(primary_key=True)
    last = IntegerField()
    at_ms = IntegerField()
    """Of the last of them."""
    packed = BlobField()


class Usage(Model):
    """Sums by day of what jobs have used."""

    day = IntegerField()
    """UTC, counted from 1970-01-01."""
    user = TextField()
    model = TextField()
    task_type = TextField()
    done = IntegerField()
    dead = IntegerField()
    cancelled = IntegerField()
    expired = IntegerField()
    prompt_tokens = IntegerField()
    output_tokens = IntegerField()
    engine_ms = IntegerField()
    waits = BlobField()
    """`histograms.Counts` as MessagePack."""
    runs = BlobField()

    class Meta:
        """A row is found by what it sums up."""

        primary_key = CompositeKey("day", "user", "model", "task_type")
        without_rowid = True


TABLES: tuple[type[Model], ...] = (
    Meta, Jobs, Payloads, Results, Texts, Labels, Keys, Tombstones, Events, Usage,
)  # fmt: skip

INDEXES = (
    "CREATE INDEX IF NOT EXISTS jobs_by_user ON jobs (user, number)",
    "CREATE INDEX IF NOT EXISTS jobs_open ON jobs (number) WHERE finished_at_ms = 0",
    "CREATE INDEX IF NOT EXISTS jobs_due ON jobs (deletes_at_ms) WHERE deletes_at_ms > 0",
    "CREATE INDEX IF NOT EXISTS jobs_dead ON jobs (number) WHERE state = 'dead'",
    "CREATE INDEX IF NOT EXISTS labels_by_number ON labels (number)",
    "CREATE INDEX IF NOT EXISTS events_by_last ON events (last)",
)


def connection_of(database: SqliteDatabase) -> sqlite3.Connection:
    """Return this thread's own connection, opened at its first use."""
    return cast(sqlite3.Connection, database.connection())  # type: ignore[no-untyped-call]  # peewee has no types here
