"""Where the nodes of a graph stand, once for every picture, file and page of it.

Places are attributes: `x` and `y` of a node, in pixels at full size, y upwards, and `way` of an edge, the places that
it passes between its ends ("x,y x,y"; empty where it goes straight).
"""
