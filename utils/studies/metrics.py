"""What is a metric worth? Whether it agrees with a truth, and which damage it rewards.

    python -m utils.studies.metrics RoadScene_test LLVIP_test           agreement, on pairs made of photographs
    python -m utils.studies.metrics "data.test=[RoadScene_test,Lytro_test]" --number 20      damage, on real pairs

Words are sets whose images B are photographs. Pairs of two focuses and of two exposures are
simulated from each, so the photograph is the truth (of exposures, one of many that would do). For every pair a metric
ranks what the network of the task, rules without weights and damage to the network's result give, and the sources; its
rank correlation with PSNR, SSIM and GMSD to the truth is its agreement. On the sets of data.test a table says how each
metric changes when the network's result is damaged or replaced. All metrics are measured, of 8 bit by clamp, of images
not longer than SIDE; the default text of the weights guides, and no H5 is needed. <test.output> gets the tables,
metrics_study.md, and all values, metrics_study.json.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.stats import kendalltau, rankdata, spearmanr
from tqdm import tqdm

from test import BASELINES, RULES, find_checkpoint, open_model
from utils.config import Config, parse_args
from utils.data.images import as_unit, colorize, split_color, to_8bit
from utils.data.sources import find_set, read_names
from utils.errors import InputError, run_script
from utils.files import to_json, write_file
from utils.metrics import METRICS, TRUTH_METRICS, measure_all
from utils.opencv import cv2
from utils.own.fit import Picture, read_pair, read_picture, resized
from utils.own.fuse import Fuser
from utils.own.pairing import OwnPair
from utils.process import pick_device, set_up_process
from utils.results.evaluate import applicable, average_all
from utils.results.statistics import SURE, Values, column, differences, interval, sign
from utils.simulate import SIMULATORS

SIDE = 288  # pixels; longer images are made smaller
TRUTH = "truth"
WORDS = "sets whose images B are photographs; and keys of the config, e.g. data.test=[Lytro_test]"
NUMBER = {"metavar": "N", "type": int, "default": 12, "help": "pairs of a table, evenly spread; 12"}
Pair = tuple[str, Picture, Picture, np.ndarray | None]  # name, A, B, and the truth (H, W) uint8 where it is known
DAMAGE: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {  # (H, W) in [0, 1], clamped afterwards
    "blurred": lambda x, rng: cv2.GaussianBlur(x, (0, 0), 1),
    "noised": lambda x, rng: x + rng.normal(0, 8 / 255, x.shape),
    "sharpened": lambda x, rng: 2 * x - cv2.GaussianBlur(x, (0, 0), 1.5),
    "minmax": lambda x, rng: np.interp(x, np.percentile(x, (0, 100)), (0, 1)),  # as test.stretch
    "clipped": lambda x, rng: np.interp(x, np.percentile(x, (1, 99)), (0, 1)),
}
ATTACKS = [*DAMAGE, "mean", "max", "source A", "source B"]
NOTES = f"""
simulated: mean over the pairs of Spearman's rank correlation over the methods, + for good also where lower is better;
  all: mean of the three, low and high its 95 % interval by the bootstrap; Kendall: the same of Kendall's tau;
  undamaged: all, without damaged results; truth's place: that of the photograph itself among the methods, 1 the best
others: mean change against the network's result in standard deviations of the metric over the pairs, + for better also
  where lower is better; bold: the metric rewards the damage, p < {SURE} (signed rank, Holm)
pairs and methods for which a metric has no value, or has the same for all, are left out of its numbers"""


def main() -> None:
    config, args = parse_args(__doc__, WORDS, {"--number": NUMBER}, "configs/fuse.yaml")
    if args.number < 2 or not (args.words or config.data.test):
        raise InputError("name photographs, e.g. RoadScene_test, or data.test=[Lytro_test]; --number is 2 or more")
    set_up_process(config.precision)
    jobs: dict[str, tuple[str, Iterable[Pair]]] = {}
    photos = spread([b for word in args.words for _, _, b in set_files(word, config)], args.number)
    for task in SIMULATORS if photos else ():
        jobs[f"{task}, simulated"] = task, simulated(task, photos, config.seed)
    for name in config.data.test:
        files = spread(set_files(name, config), args.number)
        pairs = ((pair, *map(smaller, read_pair(a, b)), None) for pair, a, b in files)
        jobs[name] = find_set(config, "data.test", name).task, pairs
    found, tables = {}, []
    for title, (task, pairs) in jobs.items():
        rows = measure_methods(task, pairs, config, args.overrides)
        study, sure = (agreement(rows), set()) if TRUTH in rows else attacks(rows)
        title = f"{title}, {len(rows['mean'])} pairs"
        found[title] = {"study": study, "per_image": rows}
        tables.append(table(title, study, sure))
        if TRUTH in rows:
            means = average_all(rows)[0].items()
            tables.append(table(title, {label: {name: of[name] for name in TRUTH_METRICS} for label, of in means}))
    text, folder = "\n\n".join(tables), Path(config.test.output)
    write_file(folder / "metrics_study.md", f"{text}\n")
    write_file(folder / "metrics_study.json", to_json(found, indent=1))
    print(f"\n{text}\n{NOTES}\nwritten: {folder / 'metrics_study.md'}, metrics_study.json")


def spread(items: list, number: int) -> list:
    """At most `number` of the items, evenly spread."""
    return [items[i] for i in np.linspace(0, len(items) - 1, min(number, len(items))).round().astype(int)]


def set_files(name: str, config: Config) -> list[tuple[str, Path, Path]]:
    """Name, A and B of the pairs of a set; InputError where one lacks an image."""
    source, problems = find_set(config, "the study", name), []
    sides = [(side, source.list_images(side)) for side in (source.a, source.b)]
    names = read_names(source.names, problems)
    if problems:
        raise InputError(f"{source.names} cannot be used: {'; '.join(problems)}")
    return [(pair, *(source.only_image(side, pair, files) for side, files in sides)) for pair in names]


def smaller(picture: Picture) -> Picture:
    """A picture with no side longer than SIDE."""
    scale = min(1, SIDE / max(picture.gray.shape))
    return resized(picture, tuple(round(scale * side) for side in picture.gray.shape))


def simulated(task: str, photos: list[Path], seed: int) -> Iterator[Pair]:
    """A pair of each photograph, the same for the same seed and file name."""
    for path in photos:
        gray, chroma = smaller(read_picture(path))
        photo = colorize(to_8bit(gray, "clamp"), chroma)
        pair = SIMULATORS[task][0](photo, np.random.default_rng([seed, *path.name.encode()]))
        a, b, truth = (split_color(image)[0] for image in (*pair, photo))
        yield str(path), Picture(as_unit(a), None), Picture(as_unit(b), None), truth


def measure_methods(task: str, pairs: Iterable[Pair], config: Config, overrides: list[str]) -> dict[str, Values]:
    """All metrics of what each method gives of each pair, {method: {pair: {metric: value}}}, the network first.

    Where there is a truth it is the last method, and TRUTH_METRICS are measured, too.
    """
    device, config = pick_device(config.device), replace(config, ckpt=find_checkpoint(config.ckpt, task))
    model = open_model(config, overrides, device)
    fuser = Fuser(model, config, [OwnPair(task, Path(), Path(), Path())], device, BASELINES.get(task, RULES))
    metrics, rows = applicable(list(METRICS), {task: task})[0], defaultdict(dict)
    for name, a, b, truth in tqdm(pairs, desc=task, unit="pair", disable=None):
        fused = dict(zip(fuser.labels, fuser([name], [(a, b)], fuser.features[0])[:, 0]))
        rng = np.random.default_rng([config.seed, *Path(name).name.encode()])
        fused |= {label: damage(fused[fuser.labels[0]], rng) for label, damage in DAMAGE.items()}
        fused = {k: to_8bit(x, "clamp") for k, x in (fused | {"source A": a.gray, "source B": b.gray}).items()}
        fused |= {} if truth is None else {TRUTH: truth}
        sources = fused["source A"], fused["source B"]
        for label, values in zip(fused, measure_all([*fused.values()], *sources, metrics, device, truth)):
            rows[label][name] = values
    return dict(rows)


def goodness(rows: dict[str, Values], metric: str) -> np.ndarray:
    """A metric of all pairs and methods, (pairs, methods), its sign such that more is better."""
    return sign(metric) * np.stack([column(rows, label, metric) for label in rows], axis=1)


def correlations(rows: dict[str, Values], metric: str, rank: Callable) -> np.ndarray:
    """The rank correlation of a metric with each of TRUTH_METRICS over the methods, (pairs, 3); see NOTES."""
    truths, found = [goodness(rows, name) for name in TRUTH_METRICS], []
    for values, *true in zip(goodness(rows, metric), *truths):
        known = ~np.isnan(values)
        if len(set(values[known])) > 1:
            found.append([rank(values[known], each[known]).statistic for each in true])
    return np.array(found)


def agreement(rows: dict[str, Values]) -> dict[str, dict[str, float]]:
    """How far each metric agrees with the truth: {metric: {column: value}}, the best first; see NOTES."""
    methods, found = {label: values for label, values in rows.items() if label != TRUTH}, {}
    undamaged = {label: values for label, values in methods.items() if label not in DAMAGE}
    for metric in next(iter(next(iter(rows.values())).values())):
        rhos = correlations(methods, metric, spearmanr)
        if len(rhos):
            low, high = interval(rhos.mean(axis=1))
            place = rankdata(-goodness(rows, metric), "min", axis=1, nan_policy="omit")[:, [*rows].index(TRUTH)]
            of = dict(zip((name.removesuffix("_truth") for name in TRUTH_METRICS), rhos.mean(axis=0)))
            of |= {"all": rhos.mean(), "low": low, "high": high}
            of["Kendall"] = correlations(methods, metric, kendalltau).mean()
            of["undamaged"] = np.nanmean(correlations(undamaged, metric, spearmanr))
            found[metric] = of | {"truth's place": np.nanmean(place)}
    return dict(sorted(found.items(), key=lambda row: -row[1]["all"]))


def attacks(rows: dict[str, Values]) -> tuple[dict[str, dict[str, float]], set[tuple[str, str]]]:
    """How each metric changes under ATTACKS, {metric: {attack: change}}, and where it surely rewards one; see NOTES."""
    first, found, sure = next(iter(rows)), {}, set()
    rows = {label: rows[label] for label in dict.fromkeys([first, *ATTACKS])}  # the network may be a rule
    metrics = list(next(iter(rows[first].values())))
    changes = differences(rows, metrics)
    for metric in metrics:
        values = column(rows, first, metric)
        unit = values[np.isfinite(values)].std() if np.isfinite(values).any() else 0
        if unit > 0:
            found[metric] = {label: sign(metric) * of[metric]["mean"] / unit for label, of in changes.items()}
            sure |= {(metric, k) for k, x in found[metric].items() if x > 0 and changes[k][metric]["p"] < SURE}
    return found, sure


def table(title: str, study: dict[str, dict[str, float]], bold: Set = frozenset()) -> str:
    """{row: {column: value}} in Markdown, wide enough for a terminal; the cells (row, column) of `bold` are bold."""
    columns = [*next(iter(study.values()))]
    lines = [[title, *columns], ["---", *["---:"] * len(columns)]]
    for row, of in study.items():
        lines.append([row, *(f"**{x:.3f}**" if (row, key) in bold else f"{x:.3f}" for key, x in of.items())])
    widths = [max(map(len, cells)) for cells in zip(*lines)]
    return "\n".join(f"| {' | '.join(cell.ljust(width) for cell, width in zip(line, widths))} |" for line in lines)


if __name__ == "__main__":
    run_script(main)
