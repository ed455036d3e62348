"""The fault bench of PPO: breaks one thing at a time, and counts what the safeguards say of it."""
