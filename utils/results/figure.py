"""A figure for a paper: some pairs in rows, methods in columns, boxes enlarged under each image, as PNG and PDF."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from utils import distributed
from utils.data.images import side_by_side, stack_rows, write_image
from utils.errors import InputError
from utils.files import write_file
from utils.opencv import cv2

COLORS = ((60, 60, 230), (70, 180, 60), (230, 140, 40), (40, 190, 230))  # of the boxes, BGR


class Figure:
    """Collects the images of some pairs, and draws them.

    Args:
        words: "names=a,b boxes=x,y,w,h;x,y,w,h": which pairs, and what is enlarged, pixels from the top left.

    Raises:
        InputError: other words, or a box that is not four numbers; in use, a box outside an image.
    """

    def __init__(self, words: str):
        given = dict(word.partition("=")[::2] for word in words.split())
        self.names = [name for name in given.pop("names", "").split(",") if name]
        try:
            self.boxes = [tuple(map(int, box.split(","))) for box in given.pop("boxes", "").split(";") if box]
        except ValueError:
            self.boxes = [()]
        if given or not self.names or any(len(box) != 4 or min(box[2:]) < 1 or min(box) < 0 for box in self.boxes):
            raise InputError(f"--figure takes \"names=a,b boxes=x,y,w,h;x,y,w,h\" in whole pixels, not '{words}'")
        self.rows: dict[str, np.ndarray] = {}

    def add_images(self, index: int, name: str, images: dict[str, np.ndarray]) -> None:
        """Draw the row of a pair, {label: image, gray or BGR uint8}, if it is wanted."""
        if name in self.names:
            cells = [self.cell(name, image) for image in images.values()]
            self.rows[name] = side_by_side(cells, [f"A of {name}", *list(images)[1:]])

    def write(self, folder: Path) -> None:
        """Write figure.png and figure.pdf, the first process does; InputError for a pair that is in no set."""
        for rows in distributed.gather(self.rows):
            self.rows |= rows
        if distributed.place()[0]:
            return
        missing = [name for name in self.names if name not in self.rows]
        if missing:
            raise InputError(
                f"--figure: there is no pair {missing[0]}; its name is that of its image without extension"
            )
        picture = stack_rows([self.rows[name] for name in self.names])
        write_image(folder / "figure.png", picture)
        page = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(picture[..., ::-1])).save(page, "PDF", resolution=300)
        write_file(folder / "figure.pdf", page.getvalue(), sync=False)

    def cell(self, name: str, image: np.ndarray) -> np.ndarray:
        """An image with its boxes, and under it the boxes, enlarged to share its width."""
        height, width = image.shape[:2]
        image = image if image.ndim == 3 else cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
        framed, parts = image.copy(), []
        for i, (x, y, w, h) in enumerate(self.boxes):
            if x + w > width or y + h > height:
                raise InputError(f"--figure: the box {x},{y},{w},{h} is not inside {name}, {width} x {height} pixels")
            color = COLORS[i % len(COLORS)]
            cv2.rectangle(framed, (x, y), (x + w - 1, y + h - 1), color, 2)
            shared = width * (i + 1) // len(self.boxes) - width * i // len(self.boxes)
            scaled = (shared, max(1, round(shared * h / w)))
            parts.append(cv2.resize(image[y : y + h, x : x + w], scaled, interpolation=cv2.INTER_CUBIC))
            cv2.rectangle(parts[-1], (0, 0), (scaled[0] - 1, scaled[1] - 1), color, 2)
        if not parts:
            return framed
        lowest = max(part.shape[0] for part in parts)
        parts = [np.pad(part, ((0, lowest - part.shape[0]), (0, 0), (0, 0)), constant_values=255) for part in parts]
        return np.vstack([framed, np.hstack(parts)])
