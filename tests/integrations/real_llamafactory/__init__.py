"""The real LLaMA-Factory, on the CPU: `make test-llamafactory`; skipped elsewhere."""
