"""Text features of a set, for its H5: from TextFeature/, else Text/ encoded, with a cache in the H5 folder."""

import io
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from utils.config import Config
from utils.errors import InputError
from utils.files import short_digest, write_file
from utils.guides.guide import GIVEN, check_feature
from utils.guides.text import TextEncoder, encoder_name
from utils.process import pick_device

if TYPE_CHECKING:
    from utils.data.sources import Source


@dataclass
class TextFeatures:
    """The text features of a set.

    Attributes:
        of: features (L, dim) by name.
        made_of: a digest of encoder and paragraphs by name, for features that were not given.
        encoders: by name what made the feature; GIVEN where a file does not say.
    """

    of: dict[str, np.ndarray] = field(default_factory=dict)
    made_of: dict[str, str] = field(default_factory=dict)
    encoders: dict[str, str] = field(default_factory=dict)


class TextMaker:
    """Text features for an H5, a `FeatureMaker`: all of a set are read or encoded at once."""

    def __init__(self, features: TextFeatures):
        self.features = features.of
        self.attributes: dict[str, str | int] = {}
        if features.of:
            named = set(features.encoders.values()) - {GIVEN}
            width = next(iter(features.of.values())).shape[-1]
            self.attributes = {"text_encoder": min(named, default=GIVEN), "text_dim": width}

    def __call__(self, name: str, image_a: np.ndarray, image_b: np.ndarray) -> np.ndarray | None:
        return self.features.get(name)


def read_features(
    source: "Source",
    names: list[str],
    config: Config,
    encoder: str,
    path: str | None,
    problems: list[str],
    go_on: bool = False,
) -> TextFeatures:
    """The text features of a set.

    A feature in TextFeature/ counts if it was given, or if it was encoded from the text that is there now.

    Args:
        encoder, path: as for `TextEncoder`.
        problems: gets a sentence for everything that is wrong.
        go_on: encode what can be encoded although there are problems.
    """
    found = TextFeatures()
    paragraphs: dict[str, tuple[str, ...]] = {}  # still to encode
    caches: dict[str, Path] = {}
    maker = encoder_name(encoder, path)
    cache = cache_folder(config.data.h5, maker, path) / source.dataset
    for name in names:
        given = source.folder("TextFeature") / f"{name}.npy"
        note = read_note(given)
        found.encoders[name] = note.get("encoder", GIVEN)
        if config.text.recompute or not given.is_file() or "made_of" in note:
            try:
                pair = tuple(read_paragraph(source, side, name) for side in (source.a, source.b))
            except InputError as error:
                problems.append(str(error))
                continue
            made_of = found.made_of[name] = short_digest("\0".join([maker, *pair]).encode())
            found.encoders[name] = maker
            if config.text.recompute or not given.is_file() or note.get("made_of") != made_of:
                given = caches[name] = cache / f"{name}.{made_of}.npy"  # another text, another file
                if not given.is_file():
                    paragraphs[name] = pair
                    continue
        try:
            with open(given, "rb") as stored:
                found.of[name] = check_feature(np.lib.format.read_array(stored, allow_pickle=False))
        except Exception as error:  # NumPy's parser raises many kinds
            problems.append(f"the text feature {given} cannot be used ({error})")
    if paragraphs and (go_on or not problems):
        try:
            model = TextEncoder(encoder, path, pick_device(config.device))
            encoded = model.encode_pairs(list(paragraphs.values()), config.text.batch_size)
        except InputError as error:
            problems.append(str(error))
            return found
        for name, feature in zip(paragraphs, encoded):
            found.of[name] = feature
            write_array(caches[name], feature)
    named = sorted(set(found.encoders.values()) - {GIVEN})
    if len(named) > 1:
        problems.append(f"the text features of {source.name} are of several encoders: {', '.join(named)}")
    widths = [feature.shape[1] for feature in found.of.values()]
    usual = max(set(widths), key=widths.count, default=0)
    for name, feature in found.of.items():
        if feature.shape[1] != usual:
            problems.append(f"the text feature of '{name}' is {feature.shape[1]} wide, the rest {usual}")
    return found


def write_features(source: "Source", found: TextFeatures) -> int:
    """Write what was encoded to TextFeature/, each feature with a note of what it was made from; returns how many.

    A feature without a note was given by somebody, and is kept.
    """
    count = 0
    for name, made_of in found.made_of.items():
        path = source.folder("TextFeature") / f"{name}.npy"
        if name in found.of and (not path.is_file() or read_note(path).get("made_of", made_of) != made_of):
            path.unlink(missing_ok=True)  # first, so that no feature is ever beside the note of another
            write_file(path.with_suffix(".json"), json.dumps({"made_of": made_of, "encoder": found.encoders[name]}))
            write_array(path, found.of[name])
            count += 1
    return count


def read_note(feature: Path) -> dict[str, str]:
    """The JSON beside a feature: `made_of`, a digest, and `encoder`; empty if there is none that can be read."""
    try:
        note = json.loads(feature.with_suffix(".json").read_text(encoding="utf-8"))
        return {key: str(note[key]) for key in ("made_of", "encoder") if key in note}
    except (OSError, ValueError, TypeError, RecursionError):
        return {}


def cache_folder(h5: str, maker: str, path: str | None) -> Path:
    """Where features of an encoder are kept; two local encoders may have folders of one name."""
    folder = re.sub("[/:]", "-", maker)
    if path and Path(path).is_dir():
        folder += "-" + short_digest(str(Path(path).resolve()).encode())[:8]
    return Path(h5) / "TextFeature" / folder


def read_paragraph(source: "Source", side: str, name: str) -> str:
    """The paragraph of one source image; InputError if there is none."""
    path = source.text_file(side, name)
    try:
        paragraph = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"'{name}' has no text: neither a feature in TextFeature/ nor {path}; write one, let `data_process.py "
            "describe` write it, or set text.use=default"
        ) from error
    if not paragraph:
        raise InputError(f"'{name}' has an empty text {path}")
    return paragraph


def write_array(path: Path, array: np.ndarray) -> None:
    """An .npy that is whole or not there."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    write_file(path, buffer.getvalue())
