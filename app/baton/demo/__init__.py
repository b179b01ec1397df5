"""`baton demo`: a cluster on an embedded Postgres, whose pod and worker are killed in the middle of an answer."""
