"""OpenCV, with its limits set before it is imported: every module takes it from here."""

import os

MAX_PIXELS = 180_000_000  # of an image; in colour and as floats they take 2 GiB
os.environ.setdefault("OPENCV_LOG_LEVEL", "FATAL")  # what fails is told by a sentence of ours
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # quiet: else FFmpeg prints a line for each damaged frame
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MAX_PIXELS))
import cv2  # noqa: E402

__all__ = ["MAX_PIXELS", "cv2"]
