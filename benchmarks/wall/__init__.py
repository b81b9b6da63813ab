"""A wall of architectures: every class of transformers at tiny size, traced and held against itself.

`python -m benchmarks.wall run` builds, traces and judges one model after the other and writes a JSON line for each;
`python -m benchmarks.wall page` makes docs/architectures.md of the lines. On demand, and not among the tests.
"""
