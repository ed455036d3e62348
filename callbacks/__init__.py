"""The safeguards and the other callbacks of rlmods, usable with any LightningModule."""

if __name__ != "rlmods.callbacks":
    raise ImportError(f"imported as {__name__!r}; type: import rlmods.callbacks")
