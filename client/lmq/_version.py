"""The version, written out: reading it from the installed package's metadata would slow down every import."""

__version__ = "0.1.0"
SOFTWARE = f"lmq-python/{__version__}"
"""What a client calls itself in hello."""
