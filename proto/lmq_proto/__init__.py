"""The words both sides of the wire use. No sockets, no files, no clocks."""
