"""`baton doctor`: examines a database as a careful administrator would, and says what to do.

Each check is a small function that yields findings. A check that fails or takes too long is itself reported as a
finding, and the other checks still run.
"""
