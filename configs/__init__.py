"""The configurations that come with the package, one YAML file each; the first line says what it is."""

from pathlib import Path

_FOLDER = Path(__file__).resolve().parent


def shipped_configs() -> dict[str, Path]:
    """Name → file. A file in a sub-folder has its name with it, `safeguards/observe`."""
    files = sorted(_FOLDER.rglob("*.yaml"))
    return {file.relative_to(_FOLDER).with_suffix("").as_posix(): file for file in files}


def find_config(name: str) -> Path:
    """The file of that path, else the shipped configuration of that name.

    Raises:
        FileNotFoundError: where there is neither.
    """
    shipped = shipped_configs()
    if Path(name).is_file():
        return Path(name)
    if name in shipped:
        return shipped[name]
    raise FileNotFoundError(f"got --config {name}, expected a file or one of these names: {', '.join(shipped)}")


def describe_configs() -> str:
    """One line for each: its name and the first line of the file."""
    shipped = shipped_configs()
    width = max(map(len, shipped))
    lines = (f"{name:<{width}}  {file.read_text().splitlines()[0].lstrip('# ')}\n" for name, file in shipped.items())
    return "".join(lines)
