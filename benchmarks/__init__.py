"""What jetgraph costs: against the floor of what it computes, and against every other way to compute it.

make bench                                   everything
make bench ARGS="--only jets lens --jex PATH --write"
"""
