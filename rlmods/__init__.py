"""Deep-RL agents trained with PyTorch Lightning, by a package that tells the truth about the training."""

__version__ = "0.1.0"
