"""The journal: what was accepted, on disk. SQLite in WAL mode behind one small interface, `store.Journal`."""
