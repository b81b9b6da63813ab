"""`python -m jetgraph.cli`."""

from jetgraph.cli import main

main()
