"""The fused head: statistics of label tokens from hidden states and the LM-head weight, without N x V logits."""
