"""Pretrained models that need no hub."""
