"""`python -m prunus.cli` is `prunus`."""

from prunus.cli import main

main()
