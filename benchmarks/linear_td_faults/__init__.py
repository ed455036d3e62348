"""The fault bench of linear TD: breaks one line at a time, and counts what `safeguards/off_policy` says of it."""
