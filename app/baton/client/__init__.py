"""Clients of the native API: `Client` for a program that creates streams, `Follower` for one that only follows.

Both reconnect to any pod and continue after the last event that they have.
"""

from ..errors import AnswerFailed, ClientError, FollowError, ServiceUnavailable
from .client import Client, Stream
from .follower import Connected, Disconnected, Follower, Received, Sighting

__all__ = [
    "AnswerFailed",
    "Client",
    "ClientError",
    "Connected",
    "Disconnected",
    "FollowError",
    "Follower",
    "Received",
    "ServiceUnavailable",
    "Sighting",
    "Stream",
]
