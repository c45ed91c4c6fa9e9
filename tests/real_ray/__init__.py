"""Beside the real Ray: `make test-ray`."""
