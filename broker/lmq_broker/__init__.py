"""The broker: a deterministic core, a journal, and a shell of sockets and clocks around them."""
