"""Times and holds as people say them."""

from lmq_broker.core.stimuli import Now
from lmq_proto.messages import Hold


def in_words(ms: float) -> str:
    """Return a time as people say it: `40 s`, `3 min`, `2 h 5 min`."""
    seconds = max(0, int(ms)) // 1000
    if seconds < 120:
        return f"{seconds} s"
    hours, minutes = divmod((seconds + 30) // 60, 60)
    if hours:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{minutes} min"


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: `1 job`, `3 jobs`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def how_long(hold: Hold, now: Now) -> str:
    """Return for how long something is held and why, as the end of a sentence."""
    text = f" for another {in_words(hold.until_ms - now.wall_ms)}" if hold.until_ms else ""
    return text + (f" ({hold.reason})" if hold.reason else "")
