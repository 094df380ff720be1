"""What the command line of fuse.py asks for, and the dry run that shows it."""

import re
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.config import Config
from utils.data.images import EXTENSIONS, check_writable
from utils.errors import InputError
from utils.own.fit import common_size, read_picture
from utils.own.pairing import OwnPair, find_pairs, read_table
from utils.own.video import VIDEOS, check_output, check_rates, open_frames
from utils.results.evaluate import applicable, check_metrics

# the keys of the config that say something of files of one's own
USED = r"ckpt|device|precision|compile|clip|(net|text|video)(\..*)?|test\.(stretch|metrics|compare|tile)"


@dataclass
class Job:
    """What is to be fused, and how.

    Attributes:
        pairs: in order, with their texts and instructions; a video is one.
        how: how the pairs were found, in lines, where it was not by equal names.
        out: the fused image or video, or the folder of many images.
        is_video: whether the pair is one of videos, or of folders of frames.
        resize: one of RESIZE, or None.
        align: one of MOTIONS, or None.
        instructions: those to compare, if there are several; a single one is in the pairs.
        rules: names of networks without weights, to compare with.
        metrics: to measure; empty for none.
        stretch: how results become 8 bit, as of `to_8bit`.
        fps: frames per second of a folder of frames.
        given: the keys of the config that the command line names.
        table: where the metrics go.
    """

    pairs: list[OwnPair]
    how: str
    out: Path
    is_video: bool
    resize: str | None
    align: str | None
    instructions: list[str]
    rules: list[str]
    metrics: list[str]
    stretch: str
    fps: float
    given: set[str]

    @property
    def table(self) -> Path:
        return self.out.with_suffix(".csv") if self.pairs[0].out == self.out else self.out / "metrics.csv"


def read_job(args: Namespace, config: Config, rules: Sequence[str]) -> Job:
    """The command line of fuse.py as a job.

    Args:
        args: words, overrides and the flags of fuse.py.
        rules: the networks without weights that --compare shows.

    Raises:
        InputError: arguments that do not go together, sources that cannot be paired, results over a source.
    """
    given = {word.partition("=")[0] for word in args.overrides}
    if unused := sorted(key for key in given if not re.fullmatch(USED, key)):
        raise InputError(f"fuse.py has no use for {unused[0]}; leave it out")
    measured, compare = args.metrics or "test.metrics" in given, args.compare or "test.compare" in given
    is_video = len(args.words) == 2 and any(is_video_name(path) for path in (*args.words, args.out or ""))
    instructions = list(dict.fromkeys(args.instruct))
    if is_video and (measured or compare or len(instructions) > 1):
        raise InputError("a video takes one --instruct, and neither --metrics nor --compare; fuse some of its frames")
    metrics, note = applicable(config.test.metrics, {args.task: args.task}) if measured else ([], "")
    check_metrics(metrics)
    if note:
        print(f"note: {note}")
    pairs, how, out = find_sources(args.words, args.out, is_video)
    if instructions and any(pair.instruct for pair in pairs):
        raise InputError(f"{args.words[0]} has instructions; leave out --instruct, or the column instruct")
    own = dict(zip(("text_a", "text_b"), read_texts(args.text, args.text_a, args.text_b)))
    own["instruct"] = instructions[0] if len(instructions) == 1 else ""
    job = Job(
        [pair._replace(**{key: getattr(pair, key) or text for key, text in own.items()}) for pair in pairs],
        how,
        out,
        is_video,
        args.resize,
        args.align,
        instructions if len(instructions) > 1 else [],
        list(rules) if compare else [],
        metrics,
        config.test.stretch if "test.stretch" in given else "clamp",  # these are pictures to look at
        config.video.fps,
        given,
    )
    check_results(job, args.words)
    return job


def is_video_name(path: str | Path) -> bool:
    return Path(path).suffix.lower() in VIDEOS


def check_results(job: Job, words: list[str]) -> None:
    """InputError if a result would replace a source, or the table of pairs."""
    sources = {Path(path).resolve() for path in (*words, *(side for pair in job.pairs for side in (pair.a, pair.b)))}
    folders = {folder for source in sources for folder in source.parents}
    for pair in job.pairs:
        if pair.out.resolve() in sources or ((job.rules or job.instructions) and pair.columns.resolve() in folders):
            raise InputError(f"-o {job.out} would write over the source {pair.out}; choose another place")
    if job.metrics and job.table.resolve() in sources:
        raise InputError(f"--metrics would write over {job.table}; choose another place with -o")


def read_texts(both: str | None, text_a: str | None, text_b: str | None) -> tuple[str, str]:
    """The texts of A and B, empty for none; InputError for one without the other."""
    if both and (text_a or text_b):
        raise InputError("--text is for both sources; leave it out, or --text-a and --text-b")
    if bool(text_a) != bool(text_b):
        raise InputError("give both --text-a and --text-b, or neither for the checkpoint's default text")
    return both or text_a or "", both or text_b or ""


def find_sources(words: list[str], out: str | None, is_video: bool) -> tuple[list[OwnPair], str, Path]:
    """The pairs that a command line names, how they were found, and where the results go.

    Args:
        words: A and B, or a table of pairs.
        out: -o, if it is given.

    Raises:
        InputError: as `find_pairs` and `read_table`; not one or two words; a result that would replace a source.
    """
    table = len(words) == 1 and Path(words[0]).suffix.lower() in (".csv", ".tsv")
    if not table and len(words) != 2:
        example = f'"{words[0]}/*_ir.png" "{words[0]}/*_vis.png"' if len(words) == 1 else "ir.png vis.png"
        raise InputError(
            f"name two sources, A and B, or a table of pairs (.csv), and not {len(words)}, e.g. {example}; patterns "
            "need quotation marks"
        )
    single = is_video or not table and all(Path(word).is_file() for word in words)
    suffix = next((Path(word).suffix for word in words if is_video_name(word)), "") if is_video else ".png"
    path = Path(out or ("fused" + suffix if single else "fused"))
    if is_video:
        check_output(path)
        return [OwnPair(path.stem, Path(words[0]), Path(words[1]), path)], "", path
    if single:
        path = path / f"{Path(words[0]).stem}.png" if path.is_dir() or not path.suffix else path
        check_writable(path)
    elif path.suffix.lower() in EXTENSIONS | VIDEOS and not path.is_dir():
        raise InputError(f"-o must name a folder for the results of several pairs, not {path}")
    pairs, how = (read_table(Path(words[0]), path), "") if table else find_pairs(*words, path)
    return pairs, how, path


def list_job(job: Job) -> None:
    """Print what would be fused, and do nothing (--list).

    Raises:
        InputError: as the fusion would raise it, but for what only the network can say.
    """
    if job.how:
        print(job.how.partition("\n")[0])  # the pairs follow
    failed = 0
    for pair in job.pairs:
        try:
            said = describe(pair, job)
        except InputError as error:
            failed += 1
            said = str(error)
        print(f"{pair.name}: {pair.a} + {pair.b} -> {pair.out}: {said}")
    if failed:
        raise InputError(f"{failed} of {len(job.pairs)} cannot be fused, as is said above")
    print(f"{len(job.pairs)} would be fused")


def describe(pair: OwnPair, job: Job) -> str:
    """A pair's size and what guides it, e.g. "480 x 640, with text"; errors as of `list_job`."""
    frames = rate = ""
    if job.is_video:
        a, b = open_frames(pair.a), open_frames(pair.b)
        check_rates(a, b)
        sizes = a.size, b.size
        frames, rate = f"{min(a.count, b.count)} frames of ", f", {a.fps or b.fps or job.fps:g} a second"
    else:
        sizes = tuple(read_picture(path).gray.shape for path in (pair.a, pair.b))
    height, width = common_size(*sizes, job.resize, f"{pair.a} and {pair.b}")
    texts = [read_text(text, pair.name) for text in (pair.text_a, pair.text_b) if text]
    more = ", with text" * bool(texts) + ", with an instruction" * bool(pair.instruct)
    return f"{frames}{height} x {width}{rate}{more}"


def read_text(text: str, name: str) -> str:
    """The words on an image of the pair `name`: of a folder of <name>.txt, of a .txt, or the text itself.

    Raises:
        InputError: a file that cannot be read.
    """
    path = Path(text)
    if len(text) < 256 and path.is_dir():
        path = path / f"{name}.txt"
    elif path.suffix != ".txt":
        return text
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the text {path}") from error
