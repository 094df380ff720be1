"""A user's own files: what the command line names, and the dry run that lists it."""

from argparse import Namespace
from pathlib import Path

from utils.data.fit import common_size, read_picture
from utils.data.pairing import OwnPair, find_pairs, read_table
from utils.data.video import VIDEOS, check_together, open_frames
from utils.errors import InputError


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
        InputError: as `find_pairs` and `read_table`; instructions of both the table and the command line.
    """
    out, how = Path(args.out or "fused"), ""
    if args.pairs:
        pairs = read_table(Path(args.pairs), out)
    elif is_video(args):
        pairs = [OwnPair(out.stem, Path(args.a), Path(args.b), out)]
    else:
        pairs, how = find_pairs(args.a, args.b, out)
    if args.instruct and any(pair.instruct for pair in pairs):
        raise InputError(f"{args.pairs} has instructions; leave out --instruct, or the column instruct")
    instruct = args.instruct[0] if len(args.instruct) == 1 else ""
    return [
        pair._replace(
            text_a=pair.text_a or args.text_a or "",
            text_b=pair.text_b or args.text_b or "",
            instruct=pair.instruct or instruct,
        )
        for pair in pairs
    ], how


def list_own(args: Namespace, fps: float) -> None:
    """Print what would be fused, and do nothing (--list).

    Args:
        args: as of `find_own`, and resize.
        fps: video.fps.

    Raises:
        InputError: as the fusion would raise it, but for what only the network can say.
    """
    if is_video(args):
        a, b = open_frames(args.a), open_frames(args.b)
        check_together(a, b)
        size = common_size(a.size, b.size, args.resize, f"{args.a} and {args.b}")
        print(f"{args.a} + {args.b}: {a.count} frames of {size[0]} x {size[1]}, {a.fps or b.fps or fps:g} a second")
        return
    pairs, how = find_own(args)
    if how:
        print(how.partition("\n")[0])  # the pairs follow
    problems = []
    for pair in pairs:
        try:
            a, b = (read_picture(path).gray.shape for path in (pair.a, pair.b))
            size = "{} x {}".format(*common_size(a, b, args.resize, f"{pair.a} and {pair.b}"))
        except InputError as error:
            problems.append(str(error))
            size = "cannot be fused"
        said = [key for key in ("text_a", "instruct") if getattr(pair, key)]
        texts = "".join(f", with {key.removesuffix('_a')}" for key in said)
        print(f"{pair.name}: {pair.a} + {pair.b} -> {pair.out}, {size}{texts}")
    if problems:
        raise InputError("\n".join(problems))
    print(f"{len(pairs)} pairs; nothing was fused")
