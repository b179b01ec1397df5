"""`baton demo`: a cluster on this machine, on an embedded Postgres, whose pod is killed in the middle of an answer."""
