"""Where the nodes of a graph stand, once for every picture, file and page of it.

Coordinates are attributes: `x` and `y` of a node, in pixels at full size, y upwards, and `way` of an edge, what
it passes between its ends ("x,y x,y"; empty where it goes straight).
"""
