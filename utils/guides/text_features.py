"""Text features of a set: those in TextFeature/, and paragraphs of Text/ encoded."""

import io
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from net.provenance import GuideRecord
from utils.config import Config
from utils.data.features import check_feature
from utils.data.sources import Source
from utils.errors import InputError
from utils.files import short_digest, write_file
from utils.guides.guidance import GIVEN
from utils.guides.text import TextEncoder, encoder_name, encoder_options
from utils.process import pick_device


@dataclass
class TextFeatures:
    """The text features of a set, a `FeatureMaker`: all of them were read or encoded at once.

    Attributes:
        of: features (L, dim) by name.
        made_of: a digest of encoder and paragraphs by name, for features that were not given.
        encoders: by name what made the feature; GIVEN where a file does not say.
    """

    of: dict[str, np.ndarray] = field(default_factory=dict)
    made_of: dict[str, str] = field(default_factory=dict)
    encoders: dict[str, str] = field(default_factory=dict)

    @property
    def record(self) -> GuideRecord:
        return GuideRecord(min({*self.encoders.values()} - {GIVEN}, default=GIVEN))

    def __call__(self, name: str, image_a: np.ndarray, image_b: np.ndarray) -> np.ndarray:
        return self.of[name]


def make_text(
    config: Config, record: GuideRecord | None, source: Source, names: list[str], problems: list[str]
) -> TextFeatures | None:
    """The text of the pairs of a set; see `Guide`. None if it has none and text.use=default needs none."""
    found: list[str] = []
    features = read_features(source, names, config, *encoder_options(config, record), found)
    if config.text.use == "default" and found:
        reason = found[0].partition(";")[0]  # what to do about it is done
        print(f"note: {source.name} is made without text, the default text will guide ({reason})")
        return None
    problems += found
    return features


def read_features(
    source: Source,
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
    maker = encoder_name(encoder, path)
    for name in names:
        stored = source.folder("TextFeature") / f"{name}.npy"
        note = read_note(stored)
        try:
            missing = config.text.recompute or not stored.is_file()
            if missing or "made_of" in note:
                pair = tuple(source.read_text(side, name) for side in (source.a, source.b))
                made_of = found.made_of[name] = short_digest("\0".join([maker, *pair]).encode())
                found.encoders[name] = maker
                if missing or note["made_of"] != made_of:
                    paragraphs[name] = pair
                    continue
            found.encoders[name] = note.get("encoder", GIVEN)
            found.of[name] = read_array(stored)
        except InputError as error:
            problems.append(str(error))
    if paragraphs and (go_on or not problems):
        try:
            model = TextEncoder(encoder, path, pick_device(config.device))
            encoded = model.encode_pairs(list(paragraphs.values()), config.text.batch_size)
            found.of |= zip(paragraphs, encoded)
        except InputError as error:
            problems.append(str(error))
    named = sorted(set(found.encoders.values()) - {GIVEN})
    if len(named) > 1:
        problems.append(f"the text features of {source.name} are of several encoders: {', '.join(named)}")
    widths = [feature.shape[1] for feature in found.of.values()]
    usual = max(set(widths), key=widths.count, default=0)
    for name, feature in found.of.items():
        if feature.shape[1] != usual:
            problems.append(f"the text feature of '{name}' is {feature.shape[1]} wide, the rest {usual}")
    return found


def write_features(source: Source, found: TextFeatures) -> int:
    """Write what was encoded to TextFeature/, each feature with a note of what it was made from; returns how many.

    A feature without a note was given by somebody, and is kept.
    """
    count = 0
    for name, made_of in found.made_of.items():
        path = source.folder("TextFeature") / f"{name}.npy"
        if name in found.of and (not path.is_file() or read_note(path).get("made_of", made_of) != made_of):
            path.unlink(missing_ok=True)  # first, so that no feature is ever beside the note of another
            write_file(path.with_suffix(".json"), json.dumps({"made_of": made_of, "encoder": found.encoders[name]}))
            buffer = io.BytesIO()
            np.save(buffer, found.of[name])
            write_file(path, buffer.getvalue())
            count += 1
    return count


def read_note(feature: Path) -> dict[str, str]:
    """The JSON beside a feature: `made_of`, a digest, and `encoder`; empty if there is none that can be read."""
    try:
        note = json.loads(feature.with_suffix(".json").read_text(encoding="utf-8"))
        return {key: str(note[key]) for key in ("made_of", "encoder") if key in note}
    except (OSError, ValueError, TypeError, RecursionError):
        return {}


def read_array(path: Path) -> np.ndarray:
    """A feature (L, dim) in an .npy; InputError if it is none."""
    try:
        with open(path, "rb") as file:
            return check_feature("text", np.lib.format.read_array(file, allow_pickle=False))
    except Exception as error:  # NumPy's parser raises many kinds
        raise InputError(f"the text feature {path} cannot be used ({error})") from error
