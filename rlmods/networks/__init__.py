"""Networks, and the encoders that fit them to an environment."""
