"""What a traced graph is made of: joins, streams, branches and their parts."""
