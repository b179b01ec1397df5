"""What cannot be run here, and why."""


class Missing(Exception):
    """Something that a measurement needs is not here. The message says what to install."""
