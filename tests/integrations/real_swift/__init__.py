"""The real ms-swift, on the CPU: `make test-swift`; skipped elsewhere."""
