"""Dialects: the wire formats in which a stream can be followed. Each is a pure function of the log's events."""
