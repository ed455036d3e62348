"""Videos of episodes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def write_video(path: Path, frames: Sequence[Any], frames_per_second: int) -> None:
    """Write frames as an MP4 file.

    Args:
        path: of the file; its folder is made.
        frames: uint8 RGB arrays `[H, W, 3]` of one size.
        frames_per_second: of the playback.

    Raises:
        ImportError: where OpenCV does not load.
        OSError: where the file could not be written.
    """
    # Late: without libGL OpenCV does not load, and training on vectors must not need it.
    try:
        import cv2
    except ImportError as error:
        raise ImportError(
            f"writing a video needs OpenCV, which did not load ({error}): type "
            "pip uninstall opencv-python && pip install opencv-python-headless"
        ) from error
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width, _ = frames[0].shape
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), frames_per_second, (width, height))
    if not writer.isOpened():
        raise OSError(f"could not open {path} for a video of {width}x{height}: choose a folder that can be written")
    for frame in frames:
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    writer.release()
