"""The fault bench of TD3 and SAC: breaks one thing at a time, and counts what the safeguards say of it."""
