"""The prompt that a chat model answers with a paragraph (FILM, section 3.1): a template, filled with the parts."""

from utils.errors import InputError
from utils.files import find_file

FIELDS = ("modality", "width", "height", "caption", "dense", "segments")  # of a template; with way=image the first 3


def read_template(path: str, way: str) -> str:
    """The template at `path` (see find_file); InputError if it cannot be read, or names a field that `way` has not."""
    fields = FIELDS if way == "parts" else FIELDS[:3]
    try:
        template = find_file(path).read_text(encoding="utf-8").strip()
        template.format(**dict.fromkeys(fields, ""))
    except (OSError, ValueError, LookupError, AttributeError) as error:
        known = ", ".join(f"{{{field}}}" for field in fields)
        raise InputError(
            f"cannot use the template {path} ({error}); with describe.way={way} its fields are {known}, and plain "
            "braces are written {{ and }}"
        ) from error
    return template


def fill_template(template: str, modality: str, record: dict) -> str:
    """The prompt for an image.

    Args:
        modality: the kind of image in a word or two, e.g. infrared; left out of the prompt if empty.
        record: width and height of the image, pixels, and its parts as the models give them.
    """
    dense = [f"{found['label']} at {place_in_words(found['box'], record)}" for found in record.get("dense", [])]
    segments = []
    for found in record.get("segments", []):
        label = matching_label(found["box"], record)
        place = place_in_words(found["box"], record) + (f" ({label})" if label else "")
        segments.append(f"{100 * found['share']:.0f} % of the image at {place}")
    return (template if modality else template.replace("{modality} ", "")).format(
        modality=modality,
        width=record["width"],
        height=record["height"],
        caption=record.get("caption", ""),
        dense="; ".join(dense) or "none",
        segments="; ".join(segments) or "none",
    )


def place_in_words(box: list[int], record: dict) -> str:
    """Where the centre of a box is in the image, e.g. "the top left"."""
    x, y = (box[0] + box[2]) / 2 / record["width"], (box[1] + box[3]) / 2 / record["height"]
    words = [("top", "middle", "bottom")[min(int(3 * y), 2)], ("left", "centre", "right")[min(int(3 * x), 2)]]
    return "the " + " ".join(words)


def matching_label(box: list[int], record: dict) -> str:
    """The dense caption whose box fits that of a segment best; empty if none overlaps it by half."""
    overlaps = [(box_overlap(box, found["box"]), found["label"]) for found in record.get("dense", [])]
    best, label = max(overlaps, default=(0, ""))
    return label if best >= 0.5 else ""


def box_overlap(a: list[int], b: list[int]) -> float:
    """Intersection over union of two boxes [left, top, right, bottom], in [0, 1]."""
    sides = [max(0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1)]
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    both = sides[0] * sides[1]
    return both / max(sum(areas) - both, 1)
