"""The commands of the terminal, except those that have a package of their own."""
