"""Prometheus metrics: each pod and each worker in the process has a set of its own, with a registry of its own.

They are plain numbers until Prometheus scrapes them: its own types take a lock at each step, and most of these numbers
are counted where events pass. Names and units follow its conventions. A label has few values, whatever clients and
generators do.
"""

from .database_metrics import DatabaseMetrics
from .pod_metrics import PodMetrics
from .worker_metrics import Labels, Names, WorkerMetrics

__all__ = ["DatabaseMetrics", "Labels", "Names", "PodMetrics", "WorkerMetrics"]
