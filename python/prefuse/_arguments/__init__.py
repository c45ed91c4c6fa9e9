"""What public functions ask of their arguments, and how responses lie in a batch. Knows nothing of what is computed."""
