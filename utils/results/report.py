"""A folder that opens in a browser, from the disk: tables, every image beside its sources and rules, histograms."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import yaml

from utils import distributed
from utils.config import Config
from utils.data.images import write_image
from utils.errors import InputError
from utils.files import commit, to_json, write_file
from utils.metrics import LOWER_IS_BETTER
from utils.results.evaluate import shared_folder
from utils.results.table import left_out_lines

TEMPLATE = Path(__file__).with_suffix(".html")
MARK = "<title>Fusion report</title>"  # in every page of ours
IMAGES = "images"  # the folder of the images, beside the page


class Report:
    """A page, index.html in `folder`, and a folder of its images."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.sets: list[dict] = []

    def add_images(self, index: int, name: str, images: dict[str, np.ndarray]) -> None:
        """Add the `index`-th pair of the next set: A, B, fused, in colour, and what other networks give.

        (H, W) gray or (H, W, 3) BGR uint8 each.
        """
        for k, image in enumerate(images.values()):
            write_image(self.folder / IMAGES / f"{len(self.sets) + 1}" / f"{index}_{k}.png", image)

    def add_numbers(self, summary: dict, per_image: dict[str, dict[str, dict[str, float]]]) -> None:
        """Add the numbers of that set, pairs in order; arguments as for `utils.results.table.write_results`."""
        network, mean, folder = summary["network"], summary["mean"], f"{IMAGES}/{len(self.sets) + 1}"
        labels = ["A", "B", network, "in colour", *(label for label in mean if label != network)]
        images = [
            {"name": image, "files": [f"{folder}/{index}_{k}.png" for k in range(len(labels))], "values": values}
            for index, (image, values) in enumerate(per_image[network].items())
        ]
        shown = {
            "labels": labels,
            "images": images,
            "ranks": summary["marks"],
            "note": f"{summary['ckpt'] or 'no weights'}, 8 bit by {summary['stretch']}, {summary['precision']}.",
            "left_out": left_out_lines(summary["left_out"]),
        }
        self.sets.append(summary | shown)

    def write(self, config: Config, commit: str) -> None:
        """Write the page."""
        data = {"sets": self.sets, "lower": sorted(LOWER_IS_BETTER), "commit": commit}
        data["config"] = yaml.safe_dump(config.as_dict(), sort_keys=False)
        text = to_json(data).replace("<", "\\u003c")  # no name or path may end the script
        write_file(self.folder / "index.html", TEMPLATE.read_text(encoding="utf-8").replace("__DATA__", text))


@contextmanager
def open_report(folder: Path, config: Config) -> Iterator[Report]:
    """A report to be filled in the block; a report in `folder` is replaced at its end, and kept if the block fails.

    Raises:
        InputError: `folder` holds something else than a report.
    """
    page = folder / "index.html"
    if folder.exists() and not (page.is_file() and MARK in page.read_text(encoding="utf-8", errors="replace")):
        raise InputError(f"{folder} is there and is no report; remove it, or choose another test.output")
    with shared_folder(folder, [IMAGES]) as staged:
        report = Report(staged)
        yield report
        if distributed.place()[0] == 0:
            report.write(config, commit() or "not recorded")
    print(f"open in a browser: {page}")
