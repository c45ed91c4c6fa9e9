"""Statistics per token from logits: what is asked for, the `torch.library` operators, sums per response."""
