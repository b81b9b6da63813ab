"""Forward passes over a traced graph: values with patches, functions cut out of the graph, sizes."""
