"""The demo on a pretrained model: LoRA and preferences that a rule anyone can check decides, or a file of pairs.

The model comes from a wheel, a folder or a hub (`source`); the questions and the rule are ours (`questions`); rejected
answers are the model's own (`answers`). Then training (`job`), the time of a step by its parts beside plain PyTorch
(`cost`), and all of it as JSON, as a plot and in words (`report`).
"""
