"""What the command line of fuse.py asks for."""

import re
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.config import Config, Data, read_yaml
from utils.data.decode import pages_of
from utils.data.decoded import split_page, stem_of
from utils.data.images import EXTENSIONS
from utils.data.ranges import Range, find_range, parse_range, pixels_of
from utils.errors import InputError
from utils.files import find_file, read_text
from utils.metrics import check_metrics
from utils.own.pairing import OwnPair, find_pairs, find_stack, read_table
from utils.own.stack import POWERS
from utils.own.video import VIDEOS, frame_files, is_video, open_frames, raw_frames
from utils.provenance import Provenance
from utils.results.evaluate import applicable

TASKS = ("IVF", "MIF", "MEF", "MFF")
COLORS = ("a", "b", "both", "none")  # whose colour a result has
DEEP = (".png", ".tif", ".tiff")  # the files that hold 16 bit
# the keys of the config that fuse.py reads
USED = r"ckpt|device|precision|compile|clip|(net|text|video)(\..*)?|test\.(stretch|metrics|tile)"


@dataclass
class Job:
    """What is to be fused, and how."""

    task: str  # one of TASKS
    pairs: list[OwnPair]  # a video is one
    sources: set[Path]  # files that no result may replace
    out: Path  # the fused image or video, or the folder of images
    is_video: bool  # the pair is one of videos, or of folders of frames that become one
    resize: str | None  # one of RESIZE
    align: str | None  # one of MOTIONS
    align_or: str | None  # one of ALIGN_OR
    instructions: list[str]  # to compare, if there are several; a single one is the pairs'
    rules: Sequence[str]  # names of networks without weights, to compare with
    metrics: list[str]  # to measure
    stretch: str  # how results become integers, as of `quantize`
    depth: int  # of results, 8 or 16 bit
    color: str  # one of COLORS
    fps: float  # of a folder of frames
    rate: float | None  # of the result of videos; None for that of A
    ranges: tuple[Range | None, Range | None]  # of A and of B, one for all of their images

    @property
    def in_folder(self) -> bool:
        """Whether `out` is a folder of images."""
        return self.out != self.pairs[0].out

    @property
    def table(self) -> Path:
        """Where the metrics go."""
        return self.out / "metrics.csv" if self.in_folder else self.out.with_suffix(".csv")


def read_job(args: Namespace, config: Config, rules: Sequence[str]) -> Job:
    """The command line of fuse.py as a job; `rules` are those that --compare shows. InputError if it makes no sense."""
    given = [word.partition("=")[0] for word in args.overrides]
    for key in given:
        if not re.fullmatch(USED, key):
            raise InputError(f"fuse.py has no use for {key}; leave it out")
    if args.text and (args.text_a or args.text_b):
        raise InputError("--text is for both sources; leave it out, or --text-a and --text-b")
    if not all(text.strip() for text in args.instruct):
        raise InputError("an --instruct is empty; say what is wanted, or leave it out")
    video = any(map(is_video, (*args.words, args.out or "")))
    if args.fps is not None and not (video and 0 < args.fps < float("inf")):
        raise InputError("--fps is for videos, frames per second above 0; leave it out, or give it so")
    if args.align_or and not args.align:
        raise InputError("--align-or says what to do where --align is not sure; give --align, too")
    measured = args.metrics or "test.metrics" in given
    if video and (measured or args.compare or len(args.instruct) > 1):
        raise InputError("a video takes one --instruct, and neither --metrics nor --compare; leave them out")
    check_metrics(config.test.metrics)
    metrics, note = applicable(config.test.metrics if measured else [], {args.task: args.task})
    if note:
        print(f"note: {note}")
    pairs, out = find_sources(args.words, args.out, video, args.task)
    if args.depth == 16:
        if video or args.compare or len(args.instruct) > 1:
            raise InputError("--depth 16 is for one image a pair: no video, no --compare and no second --instruct")
        if shallow := [pair.out for pair in pairs if pair.out.suffix.lower() not in DEEP]:
            raise InputError(f"{shallow[0]} cannot hold 16 bit; name a {', '.join(DEEP)}, or leave out --depth")
    stacks = [pair for pair in pairs if pair.more]
    if stacks and args.task not in POWERS:
        of_all = f"{len(stacks[0].images)} are named ({stacks[0].a} ...)"
        advice = f"give --task {' or '.join(POWERS)} for a stack of exposures or focuses, or put patterns in quotes"
        raise InputError(f"{args.task} fuses two images, A and B, and {of_all}; {advice}")
    if stacks and (measured or args.compare or args.text_a or args.text_b or args.color in ("a", "b")):
        only = "--metrics, --compare, --text-a, --text-b and --color a or b"
        raise InputError(
            f"{only} are for pairs, and '{stacks[0].name}' has {len(stacks[0].images)} images; leave them out"
        )
    if args.instruct and any(pair.instruct for pair in pairs):
        raise InputError(f"{args.words[0]} has instructions; leave out --instruct, or the column instruct")
    several = args.instruct if len(args.instruct) > 1 else []
    sources = {Path(path).resolve() for path in (*args.words, *(image for pair in pairs for image in pair.images))}
    for i, pair in enumerate(pairs):
        text_a = words_of(pair.text_a or args.text_a or args.text or "", pair.name)
        text_b = words_of(pair.text_b or args.text_b or args.text or "", pair.name)
        if bool(text_a) != bool(text_b):
            words = "text_a and text_b" if pair.text_a or pair.text_b else "--text-a and --text-b"
            raise InputError(f"'{pair.name}' has a text of one source alone; give both {words}, or neither")
        instruct = pair.instruct or "".join(args.instruct if not several else ())
        pairs[i] = pair._replace(text_a=text_a, text_b=text_b, instruct=instruct)
        check_no_source(pair.out, sources)
    # whatever a config says: frames that are each stretched to their own range flicker
    stretch = config.test.stretch if "test.stretch" in given else "clamp"
    return Job(
        task=args.task,
        pairs=pairs,
        sources=sources,
        out=out,
        is_video=video,
        resize=args.resize,
        align=args.align,
        align_or=args.align_or,
        instructions=several,
        rules=rules if args.compare else (),
        metrics=metrics,
        stretch=stretch,
        depth=args.depth,
        color=args.color or default_color(args.task),
        fps=config.video.fps,
        rate=args.fps,
        ranges=tuple(find_side_range(getattr(args, f"range_{side}"), side, pairs) for side in "ab"),
    )


def find_side_range(text: str, side: str, pairs: Sequence[OwnPair]) -> Range | None:
    """The one range of all images of a side, as its option says; printed. InputError if that makes no sense."""
    wanted, name = parse_range(text, f"--range-{side}"), f"{side.upper()}, --range-{side} {text}"
    paths = list(dict.fromkeys(path for pair in pairs for path in ([pair.a] if side == "a" else pair.images[1:])))
    if wanted and is_video(paths[0]):
        return find_range(wanted, raw_frames(paths[0]), open_frames(paths[0]).count or 1000, name)
    files = [file for path in paths for file in (frame_files(path) if path.is_dir() else [path])]
    return find_range(wanted, pixels_of(files), len(files), name)


def task_of(record: Provenance, name: str = "") -> str:
    """The task of weights: of the sets that they record, or in the beginning of the file's `name`, or IVF."""
    data = (record.config or {}).get("data", {})
    table = find_file(data.get("datasets", Data.datasets))
    rows = read_yaml(table) if table.is_file() else {}
    recorded = [(rows.get(word.rpartition("_")[0]) or {}).get("task") for word in data.get("train", ())]
    return next((task for task in (*recorded, Path(name).name[:3]) if task in TASKS), "IVF")


def default_color(task: str) -> str:
    """Of the visible image alone for infrared A, where colour can only be a palette's; else of all."""
    return "b" if task == "IVF" else "both"


def check_no_source(path: Path, sources: set[Path]) -> None:
    """InputError if a result at `path` would replace one of the sources, resolved."""
    if path.resolve() in sources:
        raise InputError(f"{path} would be written over a source; choose another place with -o")


def check_folder(out: Path) -> None:
    """InputError if the results of several pairs would go to what is named like an image."""
    if out.suffix.lower() in EXTENSIONS and not out.is_dir():
        raise InputError(f"-o must name a folder for the results of several pairs, not {out}")


def find_sources(words: list[str], out: str | None, video: bool, task: str) -> tuple[list[OwnPair], Path]:
    """The pairs or stacks that the words of a command line name, and where the results go: `out` if -o gives it.

    Raises:
        InputError: as `find_pairs` and `read_table`; no words; a source that is missing; a wrong -o.
    """
    several = Path(out or "fused")  # results of several pairs
    if len(words) == 1 and Path(words[0]).suffix.lower() in (".csv", ".tsv"):
        check_folder(several)
        return read_table(Path(words[0]), several), several
    if not video and (len(words) > 2 or (len(words) == 1 and task in POWERS)):
        images = find_stack(words)
        for path in images:
            if not split_page(path)[0].is_file():
                what = "is no image file" if path.exists() else "is not there"
                raise InputError(f"{path} {what}; of more than two sources each must be an image")
        if len(images) < 2:
            raise InputError(f"a stack takes several images, and {words[0]} holds {len(images)}")
        source = Path(words[0]).resolve()
        return one_result(source.name if source.is_dir() else stem_of(images[0]), images, out)
    if len(words) != 2:
        example = f'"{words[0]}/*_ir.png" "{words[0]}/*_vis.png"' if len(words) == 1 else "ir.png vis.png"
        raise InputError(f"name two sources, A and B, or a table of pairs, e.g. {example}, with patterns in quotes")
    a, b = map(Path, words)
    for source in (a, b):
        if "*" not in source.name and not split_page(source)[0].exists():
            raise InputError(f"there is no {source}")
    if video:
        path = Path(out or f"fused{a.suffix or b.suffix}")
        if path.suffix and not path.is_dir() and not is_video(path):
            raise InputError(f"cannot write a video named {path}; use one of {VIDEOS}, or a folder")
        return [OwnPair(path.stem, a, b, path)], path
    if all(split_page(source)[0].is_file() for source in (a, b)):
        path = Path(out or "fused.png")
        if not path.is_dir() and path.suffix:
            return one_result(stem_of(a), [a, b], out)
        pages = pages_of(a), pages_of(b)
        pairs = zip(*pages) if len(pages[0]) == len(pages[1]) else [(a, b)]
        return [OwnPair(stem_of(one), one, two, path / f"{stem_of(one)}.png") for one, two in pairs], path
    check_folder(several)
    return find_pairs(a, b, several), several


def one_result(name: str, images: Sequence[Path], out: str | None) -> tuple[list[OwnPair], Path]:
    """The only pair or stack of a command line, as `find_sources`."""
    path = Path(out or "fused.png")
    in_folder = path.is_dir() or not path.suffix
    a, b, *more = images
    return [OwnPair(name, a, b, path / f"{name}.png" if in_folder else path, more=tuple(more))], path


def words_of(text: str, name: str) -> str:
    """The words on an image of the pair `name`: of a folder of <name>.txt, of a .txt, or the text itself."""
    path = Path(text)
    if text and len(text) < 256 and path.is_dir():  # a longer name is none
        path = path / f"{name}.txt"
    return read_text(path, "the text") if path.suffix == ".txt" else text
