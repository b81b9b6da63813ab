"""Long jobs in shards: what each computes, kept in files that join; what they cost, and texts of any length."""
