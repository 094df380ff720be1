"""A user's own files: what the command line names, and the dry run that lists it."""

from argparse import Namespace
from pathlib import Path

from utils.errors import InputError
from utils.own.fit import common_size, read_picture
from utils.own.pairing import OwnPair, find_pairs, read_table
from utils.own.video import VIDEOS, check_output, check_together, open_frames


def check_arguments(args: Namespace) -> bool:
    """Whether the command line names files of a user; InputError for arguments that do not go together."""
    if args.pairs and (args.a or args.b):
        raise InputError("--pairs is in place of --a and --b; give the one or the others")
    if not args.pairs and any((args.a, args.b, args.out)) and not all((args.a, args.b, args.out or args.list)):
        raise InputError("a pair of your own needs all of --a, --b and --out")
    if args.pairs and not (args.out or args.list):
        raise InputError("--pairs needs --out, the folder of the results")
    own = bool(args.a or args.pairs)
    for flag in ("list", "resize", "align"):
        if getattr(args, flag) and not own:
            raise InputError(f"--{flag} is for files of your own: give --a and --b, or --pairs")
    if bool(args.text_a) != bool(args.text_b):
        raise InputError("give both --text-a and --text-b, or none for the checkpoint's default text")
    if own and is_video(args) and len(args.instruct) > 1:
        raise InputError("a video takes one --instruct")
    return own


def is_video(args: Namespace) -> bool:
    """Whether the command line names a video, to read or to write."""
    return not args.pairs and any(Path(path or "").suffix.lower() in VIDEOS for path in (args.a, args.b, args.out))


def find_own(args: Namespace) -> tuple[list[OwnPair], str]:
    """What the command line names: pairs with their texts and instructions, in order; a video is one.

    Args:
        args: a, b, pairs, out, text_a, text_b, instruct.

    Returns:
        The pairs, and how they were found, in lines, where it was not by equal names.

    Raises:
        InputError: as `find_pairs` and `read_table`; a result that would replace a source; instructions of both the
            table and the command line.
    """
    one_image = not args.pairs and Path(args.a).is_file() and not is_video(args)
    out, how = Path(args.out or ("fused.png" if one_image else "fused")), ""
    if args.pairs:
        pairs = read_table(Path(args.pairs), out)
    elif is_video(args):
        pairs = [OwnPair(out.stem, Path(args.a), Path(args.b), out)]
    else:
        pairs, how = find_pairs(args.a, args.b, out)
    sources = {source.resolve() for pair in pairs for source in (pair.a, pair.b)}
    for pair in pairs:
        if pair.out.resolve() in sources:
            raise InputError(f"--out would write over the source {pair.out}; choose another place")
    if args.instruct and any(pair.instruct for pair in pairs):
        raise InputError(f"{args.pairs} has instructions; leave out --instruct, or the column instruct")
    own = {"text_a": args.text_a or "", "text_b": args.text_b or ""}
    own["instruct"] = args.instruct[0] if len(args.instruct) == 1 else ""
    return [pair._replace(**{key: getattr(pair, key) or text for key, text in own.items()}) for pair in pairs], how


def list_own(args: Namespace, fps: float) -> None:
    """Print what would be fused, and do nothing (--list).

    Args:
        args: as of `find_own`, and resize.
        fps: video.fps.

    Raises:
        InputError: as the fusion would raise it, but for what only the network can say.
    """
    pairs, how = find_own(args)
    if how:
        print(how.partition("\n")[0])  # the pairs follow
    failed = 0
    for pair in pairs:
        try:
            said = describe(pair, args, fps)
        except InputError as error:
            failed += 1
            said = str(error)
        print(f"{pair.name}: {pair.a} + {pair.b} -> {pair.out}: {said}")
    if failed:
        raise InputError(f"{failed} of {len(pairs)} cannot be fused, as is said above")
    print(f"{len(pairs)} would be fused")


def describe(pair: OwnPair, args: Namespace, fps: float) -> str:
    """What a pair is like, e.g. "480 x 640, with text"; arguments and errors as of `list_own`."""
    frames = rate = ""
    if is_video(args):
        a, b = open_frames(pair.a), open_frames(pair.b)
        check_together(a, b)
        if args.out:
            check_output(pair.out)
        sizes, frames, rate = (a.size, b.size), f"{a.count} frames of ", f", {a.fps or b.fps or fps:g} a second"
    else:
        sizes = [read_picture(path).gray.shape for path in (pair.a, pair.b)]
    height, width = common_size(*sizes, args.resize, "they")
    texts = [read_text(text, pair.name) for text in (pair.text_a, pair.text_b) if text]
    more = ", with text" * bool(texts) + ", with an instruction" * bool(pair.instruct)
    return f"{frames}{height} x {width}{rate}{more}"


def read_text(text: str, name: str) -> str:
    """What an image of a pair shows, from a folder of <name>.txt, a .txt, or the text itself.

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
