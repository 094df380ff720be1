"""A folder that opens in a browser, from the disk: tables, every image beside its sources and rules, histograms."""

import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import yaml

from utils.config import Config
from utils.data.images import write_image
from utils.errors import InputError
from utils.files import exclusive_lock, to_json, write_file
from utils.metrics import LOWER_IS_BETTER
from utils.results.table import left_out_lines, ranks

TEMPLATE = Path(__file__).with_suffix(".html")
MARK = "<title>Fusion report</title>"  # in every page of ours
IMAGES = re.compile(r"images-\d+")  # a folder for each report, so that the last one is whole until the new one is


@contextmanager
def new_report(folder: Path, config: Config, commit: str) -> Iterator["Report"]:
    """A report to fill, <folder>/index.html and its images; it replaces the last one when the block ends well.

    Raises:
        InputError: something else is there, another run is writing there, or it cannot be written.
    """
    index = folder / "index.html"
    ours = index.is_file() and MARK in index.read_text(encoding="utf-8", errors="replace")
    if folder.exists() and not (ours or (folder.is_dir() and all(IMAGES.fullmatch(p.name) for p in folder.iterdir()))):
        raise InputError(f"{folder} is there and is no report; remove it, or choose another test.output")
    with exclusive_lock(folder):
        report = Report(folder, f"images-{time.time_ns()}")
        try:
            yield report
            report.write(config, commit)
        except BaseException:
            shutil.rmtree(folder / report.images, ignore_errors=True)
            raise
        for old in [p for p in folder.iterdir() if IMAGES.fullmatch(p.name) and p.name != report.images]:
            shutil.rmtree(old, ignore_errors=True)


class Report:
    """The page and a folder of its images, beside each other."""

    def __init__(self, folder: Path, images: str):
        self.folder, self.images = folder, images
        self.sets: list[dict] = []

    def start_set(self, name: str, labels: list[str]) -> None:
        """What comes next is of this set. Of a pair are shown A, B and what else `labels` names."""
        self.sets.append({"name": name, "labels": labels})

    def add_images(self, index: int, images: list[np.ndarray]) -> None:
        """What is shown of a pair, the `index`-th of the set: (H, W) gray or (H, W, 3) BGR for each label."""
        for file, picture in zip(self._files(index), images, strict=True):
            write_image(self.folder / file, picture)

    def _files(self, index: int) -> list[str]:
        return [f"{self.images}/{len(self.sets)}/{index}_{k}.png" for k in range(len(self.sets[-1]["labels"]))]

    def add_numbers(self, summary: dict, per_image: dict[str, dict[str, dict[str, float]]]) -> None:
        """The table of the set, with its pairs in order; arguments as for `utils.results.table.write_results`."""
        last, network = self.sets[-1], summary["network"]
        places = ranks(summary["mean"], summary["metrics"])
        classes = {
            label: {m: ("", "first", "second")[place] for m, place in row.items()} for label, row in places.items()
        }
        last |= {
            "images": [
                {"name": image, "files": self._files(index), "values": values}
                for index, (image, values) in enumerate(per_image[network].items())
            ],
            "network": network,
            "metrics": summary["metrics"],
            "mean": summary["mean"],
            "ranks": classes,
            "published": list(summary["published"].items()),
            "note": f"{summary['ckpt'] or 'no weights'}, 8 bit by {summary['stretch']}, {summary['precision']}.",
            "left_out": left_out_lines(summary["left_out"]),
        }

    def write(self, config: Config, commit: str) -> None:
        """Write the page."""
        data = {"sets": self.sets, "lower": sorted(LOWER_IS_BETTER), "commit": commit}
        data["config"] = yaml.safe_dump(config.as_dict(), sort_keys=False)
        text = to_json(data).replace("<", "\\u003c")  # no name or path may end the script
        write_file(self.folder / "index.html", TEMPLATE.read_text(encoding="utf-8").replace("__DATA__", text))
