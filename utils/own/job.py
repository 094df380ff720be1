"""What the command line of fuse.py asks for."""

import re
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.config import Config
from utils.data.images import EXTENSIONS, check_writable
from utils.errors import InputError
from utils.own.pairing import OwnPair, find_pairs, read_table
from utils.own.video import CODECS, VIDEOS, is_video
from utils.results.evaluate import applicable, check_metrics

# the keys of the config that fuse.py reads
USED = r"ckpt|device|precision|compile|clip|(net|text|video)(\..*)?|test\.(stretch|metrics|compare|tile)"


@dataclass
class Job:
    """What is to be fused, and how."""

    pairs: list[OwnPair]  # a video is one
    out: Path  # the fused image or video, or the folder of several images
    is_video: bool  # the pair is one of videos, or of folders of frames that become one
    resize: str | None  # one of RESIZE
    align: str | None  # one of MOTIONS
    instructions: list[str]  # to compare, if there are several; a single one is the pairs'
    rules: Sequence[str]  # names of networks without weights, to compare with
    metrics: list[str]  # to measure
    stretch: str  # how results become 8 bit, as of `to_8bit`
    fps: float  # of a folder of frames

    @property
    def table(self) -> Path:
        """Where the metrics go."""
        return self.out.with_suffix(".csv") if self.out == self.pairs[0].out else self.out / "metrics.csv"


def read_job(args: Namespace, config: Config, rules: Sequence[str]) -> Job:
    """The command line of fuse.py as a job.

    Args:
        args: words, overrides and the flags of fuse.py.
        config: of the words key=value.
        rules: the networks without weights that --compare shows.

    Raises:
        InputError: arguments that do not go together, sources that cannot be paired, results over a source.
    """
    given = [word.partition("=")[0] for word in args.overrides]
    for key in given:
        if not re.fullmatch(USED, key):
            raise InputError(f"fuse.py has no use for {key}; leave it out")
    if args.text and (args.text_a or args.text_b):
        raise InputError("--text is for both sources; leave it out, or --text-a and --text-b")
    if bool(args.text_a) != bool(args.text_b):
        raise InputError("give both --text-a and --text-b, or neither for the checkpoint's default text")
    compare, metrics = args.compare or ("test.compare" in given and config.test.compare), []
    if args.metrics or "test.metrics" in given:
        check_metrics(config.test.metrics)
        metrics, note = applicable(config.test.metrics, {args.task: args.task})
        if note:
            print(f"note: {note}")
    video = any(map(is_video, (*args.words, args.out or "")))
    if video and (metrics or compare or len(args.instruct) > 1):
        raise InputError("a video takes one --instruct, and neither --metrics nor --compare; leave them out")
    pairs, out = find_sources(args.words, args.out, video)
    if args.instruct and any(pair.instruct for pair in pairs):
        raise InputError(f"{args.words[0]} has instructions; leave out --instruct, or the column instruct")
    several = list(dict.fromkeys(args.instruct)) if len(args.instruct) > 1 else []
    text_a, text_b = (args.text or text or "" for text in (args.text_a, args.text_b))
    instruct = args.instruct[0] if args.instruct and not several else ""
    for i, pair in enumerate(pairs):
        texts = (read_text(text, pair.name) for text in (pair.text_a or text_a, pair.text_b or text_b))
        pairs[i] = pair._replace(**dict(zip(("text_a", "text_b"), texts)), instruct=pair.instruct or instruct)
    stretch = config.test.stretch if "test.stretch" in given else "clamp"  # these are pictures to look at
    rules = rules if compare else ()
    job = Job(pairs, out, video, args.resize, args.align, several, rules, metrics, stretch, config.video.fps)
    check_results(job, args.words)
    return job


def find_sources(words: list[str], out: str | None, video: bool) -> tuple[list[OwnPair], Path]:
    """The pairs that a command line names, and where the results go.

    Args:
        words: A and B, or a table of pairs.
        out: -o, if it is given.

    Raises:
        InputError: as `find_pairs` and `read_table`; not one or two words; a source that is missing.
    """
    if len(words) == 1 and Path(words[0]).suffix.lower() in (".csv", ".tsv"):
        folder = folder_of_results(out)
        return read_table(Path(words[0]), folder), folder
    if len(words) != 2:
        example = f'"{words[0]}/*_ir.png" "{words[0]}/*_vis.png"' if len(words) == 1 else "ir.png vis.png"
        raise InputError(f"name two sources, A and B, or a table of pairs, e.g. {example}, with patterns in quotes")
    a, b = map(Path, words)
    for source in (a, b):
        if "*" not in source.name and not source.exists():
            raise InputError(f"there is no {source}")
    if video:
        path = Path(out or f"fused{a.suffix or b.suffix}")
        if not (path.is_dir() or is_video(path) or not (path.suffix or path.exists())):
            raise InputError(f"cannot write a video named {path}; use one of {VIDEOS}, or a folder")
        return [OwnPair(path.stem, a, b, path)], path
    if a.is_file() and b.is_file():
        path = Path(out or "fused.png")
        path = path / f"{a.stem}.png" if path.is_dir() or not path.suffix else path
        check_writable(path)
        return [OwnPair(a.stem, a, b, path)], path
    folder = folder_of_results(out)
    return find_pairs(a, b, folder), folder


def folder_of_results(out: str | None) -> Path:
    path = Path(out or "fused")
    if path.suffix.lower() in EXTENSIONS | CODECS.keys() and not path.is_dir():
        raise InputError(f"-o must name a folder for the results of several pairs, not {path}")
    return path


def check_results(job: Job, words: list[str]) -> None:
    """InputError if a result would replace a source."""
    sources = {Path(path).resolve() for path in (*words, *(side for pair in job.pairs for side in (pair.a, pair.b)))}
    results = [pair.out for pair in job.pairs] + ([job.table] if job.metrics else [])
    if job.rules or job.instructions:  # each result is by itself in a folder, too
        sources |= {folder for source in sources for folder in source.parents}
        results += [pair.out.with_suffix("") for pair in job.pairs]
    for path in results:
        if path.resolve() in sources:
            raise InputError(f"{path} would be written over a source; choose another place with -o")


def read_text(text: str, name: str) -> str:
    """The words on an image of the pair `name`: of a folder of <name>.txt, of a .txt, or the text itself."""
    path = Path(text)
    if text and len(text) < 256 and path.is_dir():
        path = path / f"{name}.txt"
    if path.suffix != ".txt":
        return text
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the text {path}") from error
