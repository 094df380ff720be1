"""What is tested on: a stored set or two folders of images, and where its results go."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch.utils.data import Dataset

from utils.config import Config
from utils.data.folders import FolderPairs
from utils.data.h5 import attribute, check_shape, h5_path, open_h5, recorded_task
from utils.data.pairs import PairDataset
from utils.errors import InputError
from utils.files import plain_name


@dataclass
class TestSet:
    """Pairs to test on."""

    __test__ = False  # pytest takes it for a test
    name: str  # e.g. MSRS_test
    dataset: str  # which a table is headed by, and finds published results by
    task: str  # empty if it is not known
    folder: Path  # of the results
    # inputs of a network -> its pairs, whole, with chroma, and the map "truth" if there is one
    open: Callable[[Sequence[str]], Dataset]


def stored_set(name: str, config: Config) -> TestSet:
    """A set of an H5 file. Its results go to its dataset's folder, or to its own if data.test names several of one."""
    path = h5_path(config.data.h5, name)
    check_shape(path, config.data, training=False)
    with open_h5(path) as file:
        dataset, maps = attribute(file, "dataset") or name.rpartition("_")[0] or name, {"truth"} & {*file}
    if not plain_name(dataset):
        raise InputError(f"{path} is of a dataset {dataset!r}, which is no plain name; make it again")
    same = [other for other in config.data.test if other.rpartition("_")[0] == dataset]
    folder = Path(config.test.output) / (dataset if same == [name] else name)
    return TestSet(name, dataset, recorded_task(path), folder, partial(PairDataset, [path], chroma=True, maps=maps))


def folder_set(a: str | None, b: str | None, config: Config) -> TestSet:
    """The pairs of two folders; InputError if there is one alone."""
    if not (a and b) or Path(a).resolve() == Path(b).resolve():
        raise InputError("--a and --b belong together: the folder of the sources A, and that of the sources B")
    name = f"{Path(a).name}+{Path(b).name}"
    return TestSet(name, name, "", Path(config.test.output) / name, partial(FolderPairs, Path(a), Path(b)))


def keep_others(test: TestSet, ours: str) -> None:
    """InputError if the results of a set would replace those of other weights, or of another set of its dataset."""
    try:
        there = json.loads((test.folder / "metrics.json").read_text(encoding="utf-8"))
        theirs, of = there["ckpt"] or there["network"], there["set"]
    except (OSError, ValueError, TypeError, KeyError):  # there are none, or they are damaged
        return
    if (theirs, of) != (ours, test.name):
        names = (theirs, ours) if of == test.name else (f"{theirs} on {of}", f"{ours} on {test.name}")
        raise InputError(
            "{} has the results of {}; replace them by those of {} with --overwrite, or choose another place with "
            "test.output=...".format(test.folder, *names)
        )
