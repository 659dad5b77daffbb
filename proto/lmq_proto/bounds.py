"""Every bound of the wire, with its name and number. PROTOCOL.md lists the same; a test compares the two."""

PROTOCOL_NEWEST = 1
PROTOCOL_OLDEST = 1
"""A broker speaks its own version and the one before it; there is none before 1."""

FRAMES = 4
VERB_BYTES = 32
HEADER_BYTES = 4 * 1024 * 1024
"""Room for a batch of 1,000 jobs with labels; a header is decoded in one go, so this also bounds one step."""
PAYLOAD_BYTES = 8 * 1024 * 1024
"""Default of the broker's setting `payload_bytes`; a result has the same bound."""
BODY_BYTES = 32 * 1024 * 1024
"""One message: a batch of payloads or of results."""
BATCH_JOBS = 1000
"""Jobs named in one message, in any direction; also what moves in one step of the broker."""
NAME_CHARS = 128
"""Users, queues, task types, models, workers, label names, sessions."""
KEY_CHARS = 256
LABELS = 16
LABEL_CHARS = 256
MODELS = 16
PARENTS = 64
CHILDREN = 1000
"""Jobs that wait for one open job: the end of one moves no more than a step may."""
PRIORITY_MAX = 9
FAILURES_MAX = 100
WEIGHT_MAX = 1000
"""Of a user; the least is one over it."""
REASON_CHARS = 500
ERROR_FIELDS_BYTES = 4096
"""What the fields of a worker's error may take in a header; the story of a job keeps 20 errors."""
TOKENS = 1 << 31
"""Of a prompt, an answer, a second: far over what any engine does."""
TEXT_PIECES = 4096
"""Pieces in one text message."""
TEXT_BYTES = 1024 * 1024
"""Text in one text message."""
PAGE_JOBS = 1000
"""Jobs in one page of a listing."""
USAGE_ROWS = 2000
"""Rows in one page of usage: with names of any length they fit a header."""
DAY_MS = 86_400_000
DURATION_MS = 366 * DAY_MS
"""Every delay, expiry, timeout, keep and pause."""
FOLLOWS = 100_000
"""Jobs that one session follows."""
SUBSCRIPTIONS = 64
"""Event subscriptions of one session."""
RESULTS_CREDIT_BYTES = 16 * 1024 * 1024
"""What a session is given at the start: results it may be sent before it grants more."""
RESULT_OVERHEAD_BYTES = 256
"""What each pushed result costs beside its own bytes."""
