"""What operators see: logs, traces and metrics."""
