"""The deterministic machine. No sockets, files, threads, clock reads, global randomness or logging in here."""
