"""Environments: made from an id, read in one way, saved and restored."""
