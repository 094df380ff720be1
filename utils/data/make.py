"""H5 files from image sets: pairs read, checked, perhaps resized or cut, and stored with the features of the guides."""

import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import h5py
import numpy as np
from tqdm import tqdm

from net.provenance import GuideRecord
from utils.config import Config, Data
from utils.data.align import Alignment, align
from utils.data.h5 import CHECKSUM, crc32, h5_path, shape_attributes
from utils.data.images import as_unit, merge_chroma, read_image
from utils.data.sources import Source, read_split
from utils.data.workers import Workers
from utils.errors import InputError, shortened
from utils.files import exclusive_lock, os_error_as_input_error, replace_durably
from utils.guides import guides_of
from utils.guides.guide import FeatureMaker
from utils.loss import build_loss
from utils.opencv import cv2
from utils.targets import COMPUTED_MAPS

RESERVE = 1 << 20  # bytes of room for HDF5's own structures
GZIP = 4  # level of compression, HDF5's own default


def make_sets(
    sources: list[Source],
    config: Config,
    inputs: Iterable[str],
    records: Mapping[str, GuideRecord],
    motion: str | None = None,
) -> list[str]:
    """Write the H5 files of some sets.

    Args:
        inputs: what the network takes beside the images, its `inputs`.
        records: by guide what the network was trained with, if it is trained already.
        motion: one of MOTIONS to register B to A by it, or None to take the pairs as they are.

    Returns:
        What is wrong with the sets that could not be made, a text of several lines for each.
    """
    problems = []
    with Workers(config.data.num_workers) as workers:
        for source in sources:
            try:
                with exclusive_lock(h5_path(config.data.h5, source.name)):
                    print(make_set(source, config, inputs, records, motion, workers))
            except InputError as error:
                problems.append(str(error))
    return problems


def make_set(
    source: Source,
    config: Config,
    inputs: Iterable[str],
    records: Mapping[str, GuideRecord],
    motion: str | None,
    workers: Workers,
) -> str:
    """Write one H5 file, and say what was made. Its bytes do not depend on the number of workers.

    Raises:
        InputError: with every problem of the set on a line of its own; what was there before stays.
    """
    whole = source.name in (*config.data.val, *config.data.test)
    training = source.name in config.data.train or (source.split == "train" and not whole)
    problems: list[str] = []
    names = read_split(source, problems)
    files = {side: source.list_images(side) for side in (source.a, source.b, *source.maps.values())}
    wanted = {*build_loss(config.loss).maps, config.train.crop_on} if training else set()
    computed = sorted(wanted & COMPUTED_MAPS.keys() - source.maps.keys())
    if computed and source.task != "IVF":
        problems.append(f"the loss or train.crop_on takes '{computed[0]}', and {source.task} has no infrared source")
    makers = {g.name: g.maker(config, records.get(g.name), source, names, problems) for g in guides_of(inputs)}
    path = h5_path(config.data.h5, source.name)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    alignments: dict[str, Alignment] = {}
    try:
        with os_error_as_input_error(path), h5py.File(temporary, "w") as file:
            encode = partial(encode_pair, source, config.data, computed, training, motion)
            found = ((name, {side: {name: paths.get(name, [])} for side, paths in files.items()}) for name in names)
            pairs = tqdm(workers.map(encode, found), total=len(names), desc=source.name, unit="pair")
            for name, pair in zip(names, pairs):
                if isinstance(pair, InputError):
                    problems += str(pair).splitlines()
                elif not problems:
                    write_sample(file, pair.pieces, make_features(makers, name, pair.images))
                    if pair.alignment:
                        alignments[name] = pair.alignment
                        for piece in pair.pieces:
                            file["imageB"][piece].attrs["align"] = pair.alignment.matrix
            if problems:
                raise InputError("\n".join([f"{source.name} was not made:", *(f"  {line}" for line in problems)]))
            file.attrs.update(dataset=source.dataset, split=source.split, task=source.task)
            file.attrs["sources"] = f"{source.a},{source.b}"
            file.attrs.update(shape_attributes(config.data, training))
            if motion:
                file.attrs["align"] = motion
            for maker in makers.values():
                file.attrs.update(maker.attributes)
            count = len(file["imageA"])
            file.flush()
            size = file.id.get_filesize()
        with os_error_as_input_error(path):
            os.truncate(temporary, size)  # less what reserve() left over
            replace_durably(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    cut = f" in {count} pieces" if count != len(names) else ""
    made = f"{path}: {len(names)} pairs{cut}, {path.stat().st_size / 1e6:.1f} MB"
    return f"{made}\n{describe_alignments(alignments)}" if motion else made


def describe_alignments(alignments: Mapping[str, Alignment]) -> str:
    """One line on the pairs of a set, by name: how many were moved, how far, and which were not."""
    shifts = [found.shift for found in alignments.values() if found.improved]
    kept = [name for name, found in alignments.items() if not found.improved]
    moved = f"B was moved to A in {len(shifts)} of {len(alignments)} pairs"
    moved += f", by {np.median(shifts):.1f} pixels in the median" if shifts else ""
    return moved + (f"; kept as they are: {shortened(kept, 5)}" if kept else "")


def make_features(makers: Mapping[str, FeatureMaker], name: str, images: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """The features of a pair, by guide; a guide whose set has none is left out."""
    units = [as_unit(image) for image in images]
    features = {kind: maker(name, *units) for kind, maker in makers.items()}
    return {kind: feature for kind, feature in features.items() if feature is not None}


class EncodedMap(NamedTuple):
    """A map as the H5 stores it: `data` is the map itself, or its bytes compressed."""

    data: np.ndarray | bytes
    shape: tuple[int, int, int]
    dtype: np.dtype
    checksum: int


class EncodedPair(NamedTuple):
    """What a worker gives of a pair: `images` are the whole imageA and imageB, for guides that look at them.

    `alignment` is how B was registered to A, None if that was not asked for.
    """

    images: tuple[np.ndarray, np.ndarray]
    pieces: dict[str, dict[str, EncodedMap]]
    alignment: Alignment | None


def encode_pair(
    source: Source, data: Data, computed: Sequence[str], training: bool, motion: str | None, found: tuple[str, dict]
) -> EncodedPair | InputError:
    """Do for a pair all that needs neither a model nor the H5; this runs in workers.

    Args:
        computed: which of COMPUTED_MAPS it gets.
        training: as for `shape_pair`.
        motion: as for `read_pair`.
        found: the name of the pair, and by side what `Source.list_images` gives for it.

    Returns:
        The pair; or what is wrong with it, as `read_pair` and `shape_pair` raise it.
    """
    name, files = found
    try:
        pair, alignment = read_pair(source, files, name, motion)
        pair |= {kind: COMPUTED_MAPS[kind](255 * as_unit(pair["imageA"])) for kind in computed}
        pieces = shape_pair(name, pair, data, training)
    except InputError as error:
        return error
    encoded = {piece: {group: encode_map(group, m) for group, m in maps.items()} for piece, maps in pieces.items()}
    return EncodedPair((pair["imageA"], pair["imageB"]), encoded, alignment)


def encode_map(group: str, image: np.ndarray) -> EncodedMap:
    """A map (H, W) or chroma (2, H, W) as the H5 stores it."""
    image = np.ascontiguousarray(image)
    # chroma is only read for testing and compresses well; the images are read fast, in one piece as they are
    data = zlib.compress(image, GZIP) if group == "chroma" else image
    return EncodedMap(data, image.reshape(-1, *image.shape[-2:]).shape, image.dtype, crc32(image))


def read_pair(
    source: Source, files: dict, name: str, motion: str | None = None
) -> tuple[dict[str, np.ndarray], Alignment | None]:
    """A pair as an H5 groups it, and how B was registered to A, if it was to be.

    Args:
        files: by side what `Source.list_images` gives.
        motion: one of MOTIONS to register imageB and its colour to imageA, or None. Further maps are left as they are.

    Returns:
        imageA, imageB and further maps (H, W), and chroma (2, H, W) if the pair has colour; the alignment or None.

    Raises:
        InputError: a line per problem: missing or ambiguous file, unreadable image, unequal sizes.
    """
    problems, pair, chromas = [], {}, []
    for group, side in {"imageA": source.a, "imageB": source.b, **source.maps}.items():
        found = files[side].get(name, [])
        if len(found) != 1:
            what = f"several images ({', '.join(path.name for path in found)})" if found else "no image"
            problems.append(f"'{name}' has {what} in {source.folder('Image') / side}")
            continue
        try:
            pair[group], chroma = read_image(found[0])
        except InputError as error:
            problems.append(str(error))
            continue
        chromas.append(chroma if side in source.color else None)
    if len({image.shape for image in pair.values()}) > 1:
        sides = [source.a, source.b, *source.maps.values()]
        sizes = " and ".join(f"{h} x {w}" for h, w in (image.shape for image in pair.values()))
        problems.append(f"'{name}' has sources of unequal sizes: {sizes} pixels in {' and '.join(sides)}")
    if problems:
        raise InputError("\n".join(problems))
    alignment = align(as_unit(pair["imageA"]), as_unit(pair["imageB"]), motion) if motion else None
    if alignment:
        pair["imageB"], chromas[1] = alignment.apply(pair["imageB"], chromas[1])
    chroma = merge_chroma(chromas)
    return (pair if chroma is None else pair | {"chroma": chroma}), alignment


def shape_pair(name: str, pair: dict[str, np.ndarray], data: Data, training: bool) -> dict[str, dict]:
    """The pieces of a pair to store, {sample name: {group: map}}: whole, resized or cut into patches.

    Args:
        pair: of `read_pair`.
        training: whether data.resize, data.patch_size and data.stride count.

    Raises:
        InputError: an image smaller than a patch.
    """
    if training and data.resize:
        pair = {group: resize_landscape(m, *data.resize) for group, m in pair.items()}
    if not (training and data.patch_size):
        return {name: pair}
    size, stride = data.patch_size, data.stride or data.patch_size
    h, w = pair["imageA"].shape
    if min(h, w) < size:
        raise InputError(f"'{name}' is {h} x {w} pixels, smaller than data.patch_size ({size})")
    # the last patch of a row or column ends at the border, so that no pixel is lost
    tops, lefts = (sorted({*range(0, side - size + 1, stride), side - size}) for side in (h, w))
    return {
        f"{name}_y{top}_x{left}": {group: m[..., top : top + size, left : left + size] for group, m in pair.items()}
        for top in tops
        for left in lefts
    }


def resize_landscape(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The paper's training resize, bilinear: (..., H, W) -> (..., height, width), a portrait image transposed."""
    if image.shape[-2] > image.shape[-1]:
        image = np.swapaxes(image, -2, -1)
    planes = [cv2.resize(plane, (width, height)) for plane in image.reshape(-1, *image.shape[-2:])]
    return np.stack(planes).reshape(*image.shape[:-2], height, width)


def reserve(file: h5py.File, size: int) -> None:
    """Take room on the disk for `size` bytes more, and for HDF5's own: OSError now, while the file can be closed.

    HDF5 itself notices a full disk too late to end well.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.id.get_vfd_handle(), file.id.get_filesize(), size + RESERVE)


def write_sample(file: h5py.File, pieces: dict[str, dict[str, EncodedMap]], features: dict[str, np.ndarray]) -> None:
    """Store the pieces of one pair; all of them link to one copy of its features."""
    arrays = [*features.values(), *(encoded.data for maps in pieces.values() for encoded in maps.values())]
    reserve(file, sum(memoryview(array).nbytes for array in arrays))
    first, *others = pieces
    for kind, feature in features.items():
        stored = file.create_dataset(f"{kind}/{first}", data=feature)
        stored.attrs[CHECKSUM] = crc32(feature)
        for piece in others:
            file[f"{kind}/{piece}"] = stored  # a hard link
    for piece, maps in pieces.items():
        for group, (data, shape, dtype, checksum) in maps.items():
            if isinstance(data, bytes):  # compressed already: one chunk, which HDF5 takes as it is
                stored = file.create_dataset(f"{group}/{piece}", shape, dtype, chunks=shape, compression=GZIP)
                stored.id.write_direct_chunk((0, 0, 0), data)
            else:
                stored = file.create_dataset(f"{group}/{piece}", data=data.reshape(shape))
            stored.attrs[CHECKSUM] = checksum
