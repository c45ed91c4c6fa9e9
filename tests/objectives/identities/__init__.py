"""Relations that hold exactly, whatever the numbers: a test module for each of the package's.

A test of two objectives is with the one that reduces to the other.
"""
