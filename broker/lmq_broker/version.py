"""Which lmq this is."""

from importlib.metadata import PackageNotFoundError, version


def software() -> str:
    """Return `lmq VERSION`, or `lmq` in a checkout that was not installed."""
    try:
        return f"lmq {version('lmq')}"
    except PackageNotFoundError:
        return "lmq"
