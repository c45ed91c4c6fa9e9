"""The main job: a small language model is trained on preferences with prefuse, on this machine, and measured.

Text is the standard library's docstrings (`pairs`), the model a small Qwen3 (`model`). Supervised training, then
preference training against a frozen copy (`train`); figures on held-out pairs before and after (`evaluate`), what the
fused functions cost beside plain PyTorch (`cost`), and all of it as JSON, as a plot and in words (`report`).
"""
