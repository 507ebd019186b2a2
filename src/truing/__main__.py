"""`python -m truing`."""

from truing.cli import main

main()
