"""Calling an objective: from named arrays to a score, its gradient and its metrics."""
