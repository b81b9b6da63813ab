"""`python -m jetgraph`."""

from jetgraph.cli import main

main()
