"""The `config.yaml` of a run folder: what every sub-command understands."""

from typing import Any

from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback

# Where a run began is in its run.json.
FIT_ONLY = ("from", "weights_only_from", "force_gates")


class SavedConfig(SaveConfigCallback):
    """Saves the configuration without what `fit` alone knows: `validate` and `test` read the same file.

    Args:
        parser: of the sub-command.
        config: as it was parsed.
        overwrite: whether a file of before may go.
    """

    def __init__(self, parser: LightningArgumentParser, config: Any, overwrite: bool = False) -> None:
        kept = config.clone()
        for name in FIT_ONLY:
            kept.pop(name, None)
        super().__init__(parser, kept, overwrite=overwrite)
