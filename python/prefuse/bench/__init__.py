"""Measuring: interleaved timing, peak memory in a process of its own, and the machine the figures belong to."""
