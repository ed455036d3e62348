"""Short PPO runs, broken one setting at a time, and what the rules for the next run say of them."""
