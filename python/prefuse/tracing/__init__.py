"""Writing an objective: what its function sees, and the graph that records it."""
