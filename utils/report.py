"""A folder that opens in a browser, from the disk: tables, every image beside its sources and rules, histograms."""

import os
import shutil
from pathlib import Path

import numpy as np
import yaml

from utils.config import Config
from utils.errors import InputError
from utils.files import to_json, write_file, writing
from utils.images import write_image
from utils.metrics import LOWER_IS_BETTER
from utils.table import ranks

TEMPLATE = Path(__file__).with_suffix(".html")


class Report:
    """<folder>/index.html and its images. It is made under another name and takes its place when it is whole.

    Args:
        folder: what is there is replaced by `write`; it must be a report, or not there.

    Raises:
        InputError: something else stands there.
    """

    def __init__(self, folder: Path):
        if folder.exists() and not (folder / "index.html").is_file():
            raise InputError(f"{folder} is there and is no report; remove it, or choose another test.output")
        self.folder = folder
        self.temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
        self.sets: list[dict] = []

    def add_images(self, name: str, image: str, images: dict[str, np.ndarray]) -> None:
        """What is shown of one pair of a set: {label: (H, W) gray or (H, W, 3) BGR}, sources first."""
        if not self.sets or self.sets[-1]["name"] != name:
            self.sets.append({"name": name, "labels": list(images), "images": []})
        place, shown = f"images/{len(self.sets)}", self.sets[-1]["images"]
        files = [f"{place}/{len(shown)}_{k}.png" for k in range(len(images))]
        for file, picture in zip(files, images.values()):
            write_image(self.temporary / file, picture)
        shown.append({"name": image, "files": files})

    def add_numbers(self, summary: dict, per_image: dict[str, dict[str, dict[str, float]]]) -> None:
        """The table of the set whose images were added last; arguments as for `utils.table.write_results`."""
        last, network = self.sets[-1], summary["network"]
        for image in last["images"]:
            image["values"] = per_image[network][image["name"]]
        places = ranks(summary["mean"], summary["metrics"])
        classes = {
            label: {m: ("", "first", "second")[place] for m, place in row.items()} for label, row in places.items()
        }
        last |= {
            "network": network,
            "metrics": summary["metrics"],
            "mean": summary["mean"],
            "ranks": classes,
            "published": list(summary["published"].items()),
            "note": f"{summary['ckpt']}, 8 bit by {summary['stretch']}, {summary['precision']}.",
        }

    def write(self, config: Config, commit: str) -> Path:
        """Put the report in its place; returns the file to open."""
        data = {"sets": self.sets, "lower": sorted(LOWER_IS_BETTER), "commit": commit}
        data["config"] = yaml.safe_dump(config.as_dict(), sort_keys=False)
        text = to_json(data).replace("<", "\\u003c")  # no name or path may end the script
        write_file(self.temporary / "index.html", TEMPLATE.read_text(encoding="utf-8").replace("__DATA__", text))
        old = self.folder.with_name(f".{self.folder.name}.{os.getpid()}.old")
        with writing(self.folder):
            if self.folder.exists():
                os.replace(self.folder, old)
            os.replace(self.temporary, self.folder)
        shutil.rmtree(old, ignore_errors=True)
        return self.folder / "index.html"

    def close(self) -> None:
        """Remove what was not put in its place."""
        shutil.rmtree(self.temporary, ignore_errors=True)
