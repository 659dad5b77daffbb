"""Benchmarks of lmq beside its peers; run from the repository root, never shipped."""
