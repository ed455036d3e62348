"""The fault bench: breaks the real DQN one line at a time, and counts what the safeguards say and do about it."""
