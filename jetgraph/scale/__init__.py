"""Long jobs in shards: what each computes, kept in files that join."""
