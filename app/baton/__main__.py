"""`python -m baton` is the command `baton`."""

from .cli import main

main()
