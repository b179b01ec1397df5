"""Prometheus metrics: one set of them, with a registry of its own, for each pod and each worker in the process.

They are plain numbers until Prometheus asks: its own types take a lock at each step, and most of this is counted where
events pass. Names and units follow its conventions. The values of a label are few, whatever clients and generators do.
"""

from .pod import PodMetrics
from .worker import Labels, Names, WorkerMetrics

__all__ = ["Labels", "Names", "PodMetrics", "WorkerMetrics"]
