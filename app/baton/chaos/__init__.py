"""Faults on purpose: what a test, or a run of chaos, needs to break what lies between processes and Postgres."""
