"""The error for what cannot run on this machine."""


class Missing(Exception):
    """A measurement needs something that is not installed. The message says what to install."""
