"""Breaks an expert curriculum of DQN, one line at a time, under the safeguards of `configs/safeguards/curriculum`."""
