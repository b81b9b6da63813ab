"""Outlines, rules, paths and expansions: everything that is known before a tensor is touched."""
