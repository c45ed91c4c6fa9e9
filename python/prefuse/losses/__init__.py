"""Where gathering and scoring meet: `prefuse.preference_loss` and its relatives."""
