"""Published runs that went wrong, replayed on small tasks: their configurations, and the mistakes they need."""
