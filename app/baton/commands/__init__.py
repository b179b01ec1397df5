"""The commands of the terminal, but for those with a package of their own."""
