"""A folder that opens in a browser, from the disk: tables, every image beside its sources and rules, histograms."""

from pathlib import Path

import numpy as np
import yaml

from utils.config import Config
from utils.data.images import write_image
from utils.errors import InputError
from utils.files import to_json, write_file
from utils.metrics import LOWER_IS_BETTER
from utils.results.table import left_out_lines, ranks

TEMPLATE = Path(__file__).with_suffix(".html")
MARK = "<title>Fusion report</title>"  # in every page of ours
IMAGES = "images"  # the folder of the images, beside the page


def check_report(folder: Path) -> None:
    """InputError if `folder` holds something else than a report, which a new one would replace."""
    page = folder / "index.html"
    ours = page.is_file() and MARK in page.read_text(encoding="utf-8", errors="replace")
    if not ours and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is there and is no report; remove it, or choose another test.output")


class Report:
    """A page, index.html, and a folder of its images.

    Args:
        folder: where to write them.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.sets: list[dict] = []

    def start_set(self, name: str, labels: list[str]) -> None:
        """Begin a set; each of its pairs shows A, B and the images that `labels` names."""
        self.sets.append({"name": name, "labels": labels})

    def add_images(self, index: int, images: list[np.ndarray]) -> None:
        """Add the images of the `index`-th pair: (H, W) gray or (H, W, 3) BGR uint8 for each label."""
        for file, image in zip(self._files(index), images, strict=True):
            write_image(self.folder / file, image)

    def _files(self, index: int) -> list[str]:
        return [f"{IMAGES}/{len(self.sets)}/{index}_{k}.png" for k in range(len(self.sets[-1]["labels"]))]

    def add_numbers(self, summary: dict, per_image: dict[str, dict[str, dict[str, float]]]) -> None:
        """Add the table of the set, with its pairs in order; arguments as for `utils.results.table.write_results`."""
        network, metrics, mean = summary["network"], summary["metrics"], summary["mean"]
        words = ("", "first", "second")
        self.sets[-1] |= {
            "images": [
                {"name": image, "files": self._files(index), "values": values}
                for index, (image, values) in enumerate(per_image[network].items())
            ],
            "network": network,
            "metrics": metrics,
            "mean": mean,
            "ranks": {
                label: {m: words[place] for m, place in row.items()} for label, row in ranks(mean, metrics).items()
            },
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
