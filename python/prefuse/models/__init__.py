"""Models of transformers and PEFT: their head called by `prefuse.head`, and the proof that it is right."""
