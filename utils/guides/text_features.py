"""Text features of a set: those in TextFeature/, and paragraphs of Text/ encoded, or of text.folder."""

import io
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from utils.check import checked
from utils.config import Config
from utils.data.features import check_feature
from utils.data.make import FeatureMaker
from utils.data.sources import Source
from utils.errors import InputError
from utils.files import short_digest, write_file
from utils.guides.guidance import GIVEN
from utils.guides.text import TextEncoder, encoder_name, encoder_options, text_folder, text_use
from utils.process import pick_device
from utils.provenance import GuideRecord


@dataclass
class Note:
    """The JSON beside a feature in TextFeature/. A feature without one, or without `made_of`, was given by somebody."""

    encoder: str = GIVEN
    made_of: str = ""  # digest of the encoder's name and of the paragraphs
    rows_of_a: int = 0  # how many tokens are of A's paragraph, before those of B's; 0: not known


@dataclass
class TextFeatures:
    """The text features of a set: all of them are read or encoded at once."""

    of: dict[str, np.ndarray] = field(default_factory=dict)  # by name, (L, dim)
    notes: dict[str, Note] = field(default_factory=dict)
    encoded: list[str] = field(default_factory=list)  # names of those that were encoded now

    def encoders(self) -> list[str]:
        """What made them, as far as it is known."""
        return sorted({note.encoder for note in self.notes.values()} - {GIVEN})


def make_text(
    config: Config, record: GuideRecord | None, source: Source, names: list[str], problems: list[str]
) -> FeatureMaker | None:
    """The text of the pairs of a set; see `Guide`. None if text.use needs none, and it has none with default."""
    use, found = text_use(config, record), []
    if use == "none":
        print(f"note: {source.name} is made without text, as text.use=none needs none")
        return None
    source = replace(source, texts=text_folder(config, record))
    features = read_features(source, names, config, *encoder_options(config, record), found)
    if use == "default" and found:
        reason = found[0].partition(";")[0]  # what to do about it is done
        print(f"note: {source.name} is made without text, as text.use=default needs none ({reason})")
        return None
    problems += found
    made_by = GuideRecord(min(features.encoders(), default=GIVEN), options={"folder": source.texts})
    rows_of_a = {name: note.rows_of_a for name, note in features.notes.items() if note.rows_of_a}
    return FeatureMaker(made_by, lambda name, *images: features.of[name], rows_of_a)


def read_features(
    source: Source,
    names: list[str],
    config: Config,
    encoder: str,
    path: str | None,
    problems: list[str],
    go_on: bool = False,
) -> TextFeatures:
    """The text features of a set: a stored one if it was given, or encoded from the text that is there now.

    Args:
        encoder, path: as for `TextEncoder`.
        problems: gets a sentence for everything that is wrong.
        go_on: encode what can be encoded although there are problems.
    """
    found, paragraphs = TextFeatures(), {}
    for name in names:
        stored = source.feature_file(name)
        try:
            note = read_note(stored)
            missing = config.text.recompute or not stored.is_file()
            if missing or note.made_of:
                texts = [source.read_text(side, name) for side in (source.a, source.b)]
                maker = encoder_name(encoder, path)
                new = Note(maker, short_digest("\0".join([maker, *texts]).encode()))
                if missing or note.made_of != new.made_of:
                    found.notes[name], paragraphs[name] = new, texts
                    continue
            found.notes[name], found.of[name] = note, read_array(stored)
        except InputError as error:
            problems.append(str(error))
    if paragraphs and (go_on or not problems):
        try:
            model = TextEncoder(encoder, path, pick_device(config.device))
            of_both = [text for texts in paragraphs.values() for text in texts]
            encoded = iter(model.encode_all(of_both, config.text.batch_size))
            for name, of_a, of_b in zip(paragraphs, encoded, encoded):
                found.of[name], found.notes[name].rows_of_a = np.concatenate([of_a, of_b]), len(of_a)
            found.encoded = list(paragraphs)
        except InputError as error:
            problems.append(str(error))
    if len(found.encoders()) > 1:
        problems.append(f"the text features of {source.name} are of several encoders: {', '.join(found.encoders())}")
    widths = [feature.shape[1] for feature in found.of.values()]
    usual = max(set(widths), key=widths.count, default=0)
    for name, feature in found.of.items():
        if feature.shape[1] != usual:
            problems.append(f"the text feature of '{name}' is {feature.shape[1]} wide, the rest {usual}")
    return found


def write_features(source: Source, found: TextFeatures) -> int:
    """Write what was encoded to TextFeature/, each with its note; returns how many. What was given is kept."""
    count = 0
    for name in found.encoded:
        path = source.feature_file(name)
        if not path.is_file() or read_note(path).made_of:
            path.unlink(missing_ok=True)  # first, so that no feature is ever beside the note of another
            write_file(path.with_suffix(".json"), json.dumps(asdict(found.notes[name])))
            buffer = io.BytesIO()
            np.save(buffer, found.of[name])
            write_file(path, buffer.getvalue())
            count += 1
    return count


def read_note(feature: Path) -> Note:
    """The note beside a feature; InputError if it is none."""
    path = feature.with_suffix(".json")
    try:
        return checked(Note, json.loads(path.read_text(encoding="utf-8")), "it") if path.is_file() else Note()
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"the note {path} cannot be used ({error})") from error


def read_array(path: Path) -> np.ndarray:
    """A feature (L, dim) in an .npy; InputError if it is none."""
    try:
        with open(path, "rb") as file:
            return check_feature("text", np.lib.format.read_array(file, allow_pickle=False))
    except Exception as error:  # NumPy's parser raises many kinds
        raise InputError(f"the text feature {path} cannot be used ({error})") from error
