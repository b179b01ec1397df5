"""`baton doctor`: looks at a database as a careful administrator would, and says what to do.

Each check is a small function that yields findings. One that fails or takes too long is told as a finding itself, and
stops no other.
"""
