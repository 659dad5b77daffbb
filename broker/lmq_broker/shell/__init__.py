"""Sockets, clocks, signals and the poll loop around the core. Nothing in here decides about a job."""
