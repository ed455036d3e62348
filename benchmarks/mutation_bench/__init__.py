"""Breaks the real algorithms one line at a time under the safeguards of a preset, and counts what these say of it."""
