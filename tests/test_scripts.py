"""The scripts end to end, on generated pairs and on real ones."""

import csv
import io
import json
import re
import shutil
import sys

import cv2
import h5py
import numpy as np
import pytest
import torch

from net import load_model
from net.film import FILM
from net.restormer import RestormerBlock
from tests.toy import CONFIG, ROOT, SHARED, make_pairs, process, script
from utils.errors import run_script
from utils.results.table import PAPER_HEADER, format_table


def only_run(tmp_path):
    (folder,) = (tmp_path / "exp").iterdir()
    return folder


def losses(folder) -> list[float]:
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [record["total"] for record in records if record["kind"] == "train"]


def test_train_then_test(prepared, tmp_path):
    """The whole way: run folder, validation, best checkpoint, fused images in gray and colour, tables."""
    script("train.py", *prepared, "data.val=[Toy_test]", "train.epochs=2", "train.val_every=1")
    folder = only_run(tmp_path)
    assert re.fullmatch(r"\d{8}-\d{6}_film_ivf", folder.name)
    expected = ["code/film.py", "code/train.py", "code/git.txt", "model/last.pth", "model/best.pth", "log.txt"]
    expected += [f"pic_fusion/{pair}/epoch_000{epoch}.png" for pair in ("1_b1", "2_b2") for epoch in (1, 2)]
    for name in [*expected, "param.json", "config.yaml", "metrics.jsonl"]:
        assert (folder / name).exists(), name
    assert list(folder.glob("events.out.tfevents.*"))
    assert cv2.imread(str(folder / "pic_fusion" / "1_b1" / "epoch_0002.png")).shape[1] == 3 * (53 + 4)
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [r["kind"] for r in records].count("val") == 2
    assert {"total", "intensity", "gradient", "grad_norm", "lr", "pairs_per_s"} <= set(records[0])
    assert f"a new run: {folder}\n" in (folder / "log.txt").read_text()
    for where in (folder / "model" / "best.pth", folder, str(tmp_path / "exp" / "*_film_ivf")):
        assert load_model(where).config["channels"] == 8

    output = script("test.py", *prepared, f"ckpt={tmp_path}/exp/*/model/best.pth", "--compare")
    assert "The test result of Toy:\n" + PAPER_HEADER + "\nFILM            " in output
    assert "measured: 2 images of Toy_test (b1 ... b2), 8 bit by minmax" in output
    out = tmp_path / "out" / "Toy"
    for name in ("b1", "b2"):
        gray, color = (cv2.imread(str(out / kind / f"{name}.png"), -1) for kind in ("Gray", "RGB"))
        assert gray.shape == (45, 53) and (gray.min(), gray.max()) == (0, 255)  # stretched
        assert color.shape == (45, 53, 3) and np.ptp(color, axis=2).max() > 10  # coloured
        luma = cv2.cvtColor(color, cv2.COLOR_BGR2GRAY).astype(int)
        assert np.median(np.abs(luma - gray)) <= 12  # clipped colours may move the luma
    picture = cv2.imread(str(out / "comparison.png"))
    assert picture.shape[1] == 8 * (53 + 4)  # A, B, gray, colour, four rules
    above = [row[: -45 - 2] for row in np.split(picture, 2)]  # of each pair, which its first label names
    assert (above[0] != above[1])[:, :57].any() and (above[0] == above[1])[:, 57:].all()
    summary = json.loads((out / "metrics.json").read_text())
    rows = list(csv.DictReader((out / "metrics.csv").open()))
    assert len(rows) == 5 * 2 * len(summary["metrics"]) and summary["stretch"] == rows[0]["stretch"] == "minmax"
    per_image = [float(row["value"]) for row in rows if (row["method"], row["metric"]) == ("FILM", "SF")]
    assert summary["mean"]["FILM"]["SF"] == pytest.approx(np.mean(per_image))

    others = [*prepared, f"ckpt={folder}/model/last.pth", "test.stretch=clamp", "precision=bf16"]
    output = script("test.py", *others, code=1)
    assert f"{out} has the results of {folder}/model/best.pth; replace them by those of {folder}/model/last" in output
    assert json.loads((out / "metrics.json").read_text()) == summary
    script("test.py", *others, "--overwrite")
    script("test.py", *others)  # its own are replaced
    assert json.loads((out / "metrics.json").read_text())["stretch"] == "clamp"
    assert cv2.imread(str(out / "Gray" / "b1.png"), -1).max() < 255


def test_a_term_that_waits_comes_at_its_epoch_and_after_a_resume(prepared, toy, tmp_path):
    """train.py tells the loss how much is done; what decides that cannot change where a run is resumed."""
    infrared = np.full((40, 48), 40, np.uint8)
    infrared[16:23, 20:27] = 240
    for name in ("a1", "a2", "a3", "a4"):
        cv2.imwrite(str(tmp_path / "VLF" / "Image" / "IVF" / "Toy" / "IR" / f"{name}.png"), infrared)
    script("data_process.py", *CONFIG, *toy, "train.crop_on=warm")
    waits = [*prepared, "train.epochs=2", "train.crop_on=warm", "train.schedule=step", "train.save_every=1"]
    waits += ["loss={contrast_weight: 5, targets_from: 0.5}"]
    logged = {}
    first = tmp_path / "first.pth"
    for name, words in {"whole": [], "never": ["loss.contrast_weight=0"], "rest": [f"train.resume={first}"]}.items():
        script("train.py", *waits, *words, f"name={name}")
        (folder,) = (tmp_path / "exp").glob(f"*_{name}")
        logged[name] = losses(folder)
        if name == "whole":
            shutil.copy(folder / "model" / "epoch_1.pth", first)
    assert logged["whole"][2:] == logged["rest"] and logged["whole"][:2] == logged["never"][:2]
    assert sum(logged["whole"][2:]) > sum(logged["never"][2:]) + 0.1
    output = script("train.py", *waits, "train.epochs=3", f"train.resume={first}", code=1)
    assert "train.epochs is 3 and was 2 in the run to resume" in output


def test_resume_is_bit_for_bit(prepared, tmp_path):
    prepared = [*prepared, "data.val=[Toy_test]", "train.val_every=3"]
    script("train.py", *prepared, "train.epochs=4", "name=whole")
    whole = only_run(tmp_path)
    script("train.py", *prepared, "train.epochs=2", "name=parts")
    (parts,) = set((tmp_path / "exp").iterdir()) - {whole}
    with open(parts / "metrics.jsonl", "a") as file:
        file.write('{"kind": "train", "epo')  # killed while it wrote a line of the next epoch
    script("train.py", *prepared, "train.epochs=4", "name=parts", f"train.resume={parts}/model/last.pth")
    one, two = (torch.load(f / "model" / "last.pth", weights_only=True) for f in (whole, parts))
    assert one["epoch"] == two["epoch"] == 4 and one["step"] == two["step"] == 8
    assert one["best"] == two["best"] is not None and (parts / "model" / "best.pth").is_file()
    for name, tensor in one["model"].items():
        assert torch.equal(tensor, two["model"][name]), name
    for key, state in one["optimizer"]["state"].items():
        assert all(torch.equal(value, two["optimizer"]["state"][key][name]) for name, value in state.items())
    assert losses(whole) == losses(parts) and len(losses(whole)) == 8
    output = script("train.py", *prepared, "train.epochs=4", f"train.resume={parts}/model/last.pth", code=1)
    assert "has 4 epochs already" in output and "Traceback" not in output
    more = ["train.epochs=5", "train.lr=1", f"train.resume={parts}/model/last.pth"]
    output = script("train.py", *prepared, *more, code=1)
    assert "train.lr is 1.0 and was 0.001 in the run to resume" in output


def test_a_training_is_told_in_lines(prepared, tmp_path, monkeypatch):
    """One line an epoch, with means over its steps, and nothing of bars where this is no terminal."""
    words = [*prepared, "data.val=[Toy_test]", "train.val_every=2", "train.best=SF", "test.metrics=[SF]"]
    words += ["train.batch_size=1", "train.log_every=3", "name=told"]
    monkeypatch.chdir(ROOT)
    output = script("train.py", *words, "train.epochs=2", f"train.exp={tmp_path / 'exp'}")
    folder = only_run(tmp_path)
    assert "\r" not in output and output.endswith((folder / "log.txt").read_text())
    first, second = re.findall(r"epoch \d/2: .*", output)
    number = r"-?[\d.]+(?:e-\d+)?"
    told = rf"loss ({number}) \(intensity {number}, gradient {number}\)(  val SF {number})?"
    told += r"  lr 1.0e-03  [\d.]+ pairs/s  [\d:]+ left"
    (loss, unseen), (_, seen) = (re.fullmatch(rf"epoch \d/2: {told}", line).groups() for line in (first, second))
    assert not unseen and seen
    three, one = losses(folder)[:2]  # means of three steps, and of the last of the epoch
    assert float(loss) == pytest.approx((3 * three + one) / 4, rel=1e-3)

    for where in (f"{tmp_path}/exp/*_told", folder, f"{tmp_path}/exp/*_told/model/last.pth"):
        output = script("train.py", *words, "train.epochs=2", f"train.resume={where}", code=1)
        assert f"train.resume={folder}/model/last.pth" in output or where == folder
        assert f"{folder}/model/last.pth has 2 epochs already; raise train.epochs" in output
    script("train.py", *words, "train.epochs=3", f"train.resume={folder}")
    assert f"resumed from epoch 2 of {folder}/model/last.pth\n" in (folder / "log.txt").read_text()
    for key in ("train.resume", "train.init"):
        for where in (f"{tmp_path}/exp/*_other", tmp_path / "none.pth"):
            output = script("train.py", *words, f"{key}={where}", code=1)
            assert f"there is no checkpoint {where}; give one with {key}=..." in output, output
    assert "measured: 2 images" in script("test.py", *prepared, f"ckpt={folder}")


@pytest.mark.parametrize("words", [[], ["data.val=[Toy_test]", "train.best=SF", "test.metrics=[SF]"]])
def test_the_same_whole_pairs_are_drawn_and_change_nothing(words, prepared, tmp_path):
    words = [*prepared, *words, "train.epochs=3", "train.val_every=2"]
    for count in (0, 3):
        script("train.py", *words, f"train.pictures={count}", f"name={count}")
    drawn, none = sorted((tmp_path / "exp").iterdir(), key=lambda path: path.name.endswith("_0"))
    assert losses(drawn) == losses(none) and not (none / "pic_fusion").exists()
    pairs = ["1_b1", "2_b2"] if len(words) > len(prepared) + 2 else ["1_a1", "2_a2", "3_a4"]
    names = {str(path.relative_to(drawn / "pic_fusion")) for path in (drawn / "pic_fusion").rglob("*.png")}
    assert names == {f"{pair}/epoch_000{epoch}.png" for pair in pairs for epoch in (2, 3)}
    early, late = (cv2.imread(str(drawn / "pic_fusion" / pairs[0] / f"epoch_000{epoch}.png")) for epoch in (2, 3))
    sources = 2 * (early.shape[1] // 3)
    assert np.array_equal(early[:, :sources], late[:, :sources]) and not np.array_equal(early, late)
    (events,) = drawn.glob("events.out.tfevents.*")
    assert all(f"pairs/{pair}".encode() in events.read_bytes() for pair in pairs)


def test_steps_end_a_training_within_an_epoch(prepared, tmp_path):
    """Resumed it goes on in this epoch, and ends as the training that nothing has ended."""
    words = [*prepared, "train.batch_size=1", "train.save_every=1", "data.val=[Toy_test]", "train.val_every=9"]
    words += ["train.best=SF", "test.metrics=[SF]"]
    script("train.py", *words, "train.epochs=2", "name=whole")
    output = script("train.py", *words, "train.steps=6", "name=cut")
    assert "2 epochs" in output and re.search(r"epoch 2/2: loss .*  val SF ", output)
    cut, whole = sorted((tmp_path / "exp").iterdir(), key=lambda path: path.name.endswith("_whole"))
    assert losses(cut) == losses(whole)[:6]
    assert {path.name for path in (cut / "model").iterdir()} == {"best.pth", "last.pth", "epoch_1.pth"}
    output = script("train.py", *words, "train.steps=6", "name=cut", f"train.resume={cut}", code=1)
    assert "has 6 steps already; raise train.steps" in output
    script("train.py", *words, "train.steps=8", "name=cut", f"train.resume={cut}")
    last = [torch.load(run / "model" / "last.pth", weights_only=True) for run in (cut, whole)]
    assert [(each["epoch"], each["step"]) for each in last] == [(2, 8), (2, 8)] and losses(cut) == losses(whole)
    assert all(torch.equal(tensor, last[1]["model"][name]) for name, tensor in last[0]["model"].items())
    output = script("train.py", *prepared, "train.batch_size=1", "train.epochs=9", f"train.resume={cut}", code=1)
    assert "data.val is [] and was ['Toy_test'] in the run to resume" in output
    output = script("train.py", *words, "data.leave_out=[a1]", "train.epochs=9", f"train.resume={cut}", code=1)
    assert "data.leave_out is ['a1'] and was []" in output


def test_a_run_is_not_resumed_with_other_pairs(prepared, tmp_path):
    script("train.py", *prepared, "train.epochs=1", "train.batch_size=1")
    make_pairs(tmp_path / "VLF", ["a1", "a2", "a3"], "train")
    script("data_process.py", *prepared, "Toy_train")
    words = ["train.epochs=2", "train.batch_size=1", f"train.resume={only_run(tmp_path)}"]
    output = script("train.py", *prepared, *words, code=1)
    assert "has 4 steps in 1 epochs, and an epoch has 3 steps now: the training set has changed" in output


@pytest.fixture
def for_all_terms(prepared, tmp_path) -> list[str]:
    """The toy training with the loss terms of the recipes that ship, on crops that are large enough for them."""
    make_pairs(tmp_path / "VLF", ["a1", "a2", "a3", "a4"], "train", size=(48, 56))
    script("data_process.py", *prepared, "Toy_train")
    loss = ["loss.vif_weight=0.5", "loss.gradient=vector", "loss.intensity=exposed", "loss.grad_weight=1"]
    return [*prepared, "train.crop=44", *loss]


@pytest.mark.parametrize("parts, sets", [(1, "prepared"), pytest.param(2, "for_all_terms", marks=pytest.mark.slow)])
def test_two_processes_train_as_one(parts, sets, tmp_path, request):
    """torchrun with gloo: the same global batch, also in parts, gives the same losses, metrics and weights."""
    prepared = request.getfixturevalue(sets)
    more = ["train.epochs=1", "data.val=[Toy_test]", "train.val_every=1", f"train.batch_size={2 * parts}"]
    script("train.py", *prepared, *more, "name=one")
    one = only_run(tmp_path)
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    process(*launcher, "train.py", *prepared, *more, "name=two", f"train.accumulate={parts}")
    (two,) = set((tmp_path / "exp").iterdir()) - {one}
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    last = [torch.load(f / "model" / "last.pth", weights_only=True) for f in (one, two)]
    for key, state in last[0]["optimizer"]["state"].items():  # running means of the gradients
        torch.testing.assert_close(
            state["exp_avg"], last[1]["optimizer"]["state"][key]["exp_avg"], atol=1e-6, rtol=1e-3
        )
    # Adam's steps have the size of the rate however small a gradient is, so a term with more rounding is left out
    for name, tensor in last[0]["model"].items() if sets == "prepared" else ():
        torch.testing.assert_close(tensor, last[1]["model"][name], atol=1e-5, rtol=1e-4)
    scores = [checkpoint["scores"] for checkpoint in last]
    assert scores[0] == pytest.approx(scores[1], rel=1e-3)


def test_saving_memory_does_not_change_the_training(for_all_terms, tmp_path, monkeypatch):
    words = [*for_all_terms, "train.epochs=2", "train.batch_size=4", "train.pictures=0"]
    script("train.py", *words, "name=whole")
    whole = only_run(tmp_path)
    pairs, blocks, plain, forward = [], [], RestormerBlock.plain, RestormerBlock.forward
    monkeypatch.setattr(RestormerBlock, "plain", lambda self, x: pairs.append(len(x)) or plain(self, x))
    monkeypatch.setattr(RestormerBlock, "forward", lambda self, x: blocks.append(1) or forward(self, x))
    script("train.py", *words, "name=parts", "train.accumulate=2", "train.checkpointing=true")
    assert set(pairs) == {2} and len(pairs) == 2 * len(blocks)  # in parts of two, every block twice
    (parts,) = set((tmp_path / "exp").iterdir()) - {whole}
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-5)


def test_too_little_memory_is_one_sentence(prepared, tmp_path, monkeypatch):
    script("train.py", *prepared, "train.epochs=1")
    checkpoint = f"ckpt={only_run(tmp_path) / 'model' / 'last.pth'}"
    monkeypatch.setattr(FILM, "forward", lambda self, *inputs: torch.empty(10**15))  # the allocator's own error
    assert "not enough memory to train; compute" in script("train.py", *prepared, "train.epochs=1", code=1)
    printed = script("test.py", *prepared, checkpoint, code=1)
    assert "not enough memory to fuse 'b1' (45 x 53 pixels); limit it" in printed and "test.tile=32" in printed


def test_loss_that_is_not_finite_stops_the_run(prepared, tmp_path):
    script("train.py", *prepared, "train.epochs=1")
    folder = only_run(tmp_path)
    before = (folder / "model" / "last.pth").read_bytes()
    checkpoint = torch.load(folder / "model" / "last.pth", weights_only=True)
    for group in checkpoint["optimizer"]["param_groups"]:
        group["lr"] = 1e30  # the first step goes well, the second meets its weights
    torch.save(checkpoint, tmp_path / "wild.pth")
    resume = ["train.epochs=3", f"train.resume={tmp_path / 'wild.pth'}"]
    output = script("train.py", *prepared, *resume, code=1)
    assert re.search(r"the loss is not finite at step [34], samples a\d, a\d; training stopped", output), output
    assert "Traceback" not in output and (folder / "model" / "last.pth").read_bytes() == before


def test_nan_in_an_image_names_the_sample(prepared, tmp_path):
    with h5py.File(tmp_path / "h5" / "Toy_train.h5", "r+") as file:
        image = np.full(file["imageA/a4"].shape, np.nan, np.float32)
        del file["imageA/a4"]
        file["imageA/a4"] = image
    output = script("train.py", *prepared, "train.num_workers=1", "train.epochs=1", code=1)
    assert "sample 'a4'" in output and "NaN" in output and "Traceback" not in output


def test_wrong_training_settings_are_one_sentence(prepared, tmp_path):
    for words, message in (
        (["train.batch_size=9"], "at most the 4 training pairs"),
        (["net.text_dim=13"], "has text 12 wide and the network takes 13"),
        (["net={name: mean}"], "net.name 'mean' has no weights to train"),
        (["data.train=[]"], "data.train names no set"),
        (["train.crop=64"], "4 of 4 pairs are smaller than train.crop (64), e.g. 'a1', 40 x 48; set train.pad=ref"),
        (["train.best=Quality"], "no metric 'Quality'"),
        (["device=cuda:9"], "device 'cuda:9' is not there"),
        (["loss.vif_weight=1"], "loss.vif_weight needs images of 41 pixels a side or more; raise train.crop"),
    ):
        output = script("train.py", *prepared, *words, code=1)
        assert message in output and "Traceback" not in output and "Caught" not in output
        assert not (tmp_path / "exp").exists() or "vif" in message  # which the first step alone knows


def test_published_weights_fuse_a_set(shared, prepared, tmp_path):
    with h5py.File(tmp_path / "h5" / "Wide_test.h5", "w") as file:
        rng = np.random.default_rng(0)
        for group in ("imageA", "imageB"):
            file[f"{group}/x"] = rng.random((1, 64, 64), dtype=np.float32)
        file["text/x"] = rng.normal(size=(1, 4, 768)).astype(np.float32)
    ckpt = f"ckpt={shared / 'reference' / 'film_official_layout.pth'}"
    words = [word for word in prepared if not word.startswith("net.")]
    assert "The test result of Wide:" in script("test.py", *words, ckpt, "data.test=[Wide_test]")


def test_real_pairs(shared, tmp_path):
    """Two RoadScene pairs: real files, real sizes, real text; the rule max measured as the published evaluator does."""
    root = tmp_path / "VLF"
    names = ["FLIR_00006", "FLIR_04269"]
    for kind in ("Image", "Text"):
        source = SHARED / "data" / "VLFDataset" / kind / "IVF" / "RoadScene"
        for folder in ("IR", "VI"):
            (root / kind / "IVF" / "RoadScene" / folder).mkdir(parents=True)
            for name in names:
                (path,) = (source / folder).glob(f"{name}.*")
                shutil.copy(path, root / kind / "IVF" / "RoadScene" / folder)
    (root / "Image" / "IVF" / "RoadScene" / "test.txt").write_text("\n".join(names))
    options = [f"data.root={root}", f"data.h5={tmp_path / 'h5'}", "data.test=[RoadScene_test]", "data.train=[]"]
    options += ["text.encoder=auto", f"test.output={tmp_path / 'out'}", "ckpt=null", "net={name: max}"]
    options += ["test.stretch=clamp", "test.metrics=[EN,SD,SF,AG,VIFF,Qabf,MI,SSIM]"]
    script("data_process.py", *CONFIG, *options)
    output = script("test.py", *CONFIG, *options, "--compare")
    assert "CDDFuse, CVPR 2023: the 50 pairs of RoadScene_test" in output
    ours = json.loads((tmp_path / "out" / "RoadScene" / "metrics.json").read_text())["per_image"]["max"]
    cases = json.loads((SHARED / "reference" / "metrics_film.json").read_text())["cases"]
    cases = [case for case in cases if case["dataset"] == "IVF/RoadScene" and case["fused"] == "max"]
    assert {case["name"] for case in cases} == set(names)
    for case in cases:
        for metric, value in ours[case["name"]].items():
            assert value == pytest.approx(case["values"][metric], rel=1e-6), metric


def test_metrics_and_rules_by_task(prepared, tmp_path):
    """What is measured and compared follows the task that an H5 file records, and a published one records none."""
    rules = ["mean", "max", "Laplacian"]
    words = ["net={name: mean}", "ckpt=null", "test.metrics=[TC,SD,TClost]", "--compare"]
    for task, more in {"IVF": ["two-scale"], "MFF": ["focus"], "": []}.items():
        with h5py.File(tmp_path / "h5" / "Toy_test.h5", "r+") as file:
            file.attrs["task"] = task
            if not task:
                del file.attrs["task"]
        output = script("test.py", *prepared, *words)
        summary = json.loads((tmp_path / "out" / "Toy" / "metrics.json").read_text())
        assert list(summary["mean"]) == rules + more
        infrared = task in ("IVF", "")
        assert summary["metrics"] == (["TC", "SD", "TClost"] if infrared else ["SD"])
        note = "note: TC and TClost are for an infrared source A and left out of Toy_test\n"
        assert (note in output) != infrared and ("TClost↓" in output) == infrared
    with h5py.File(tmp_path / "h5" / "Toy_test.h5", "r+") as file:
        file.attrs["task"] = "MEF"
    output = script("test.py", *prepared, *words, "test.metrics=[TC]", code=1)
    assert "TC is for an infrared source A and left out of Toy_test, where test.metrics names no other" in output

    training = ["data.val=[Toy_test]", "train.epochs=1", "train.val_every=1", "test.metrics=[TC,SD]"]
    output = script("train.py", *prepared, *training, "train.best=TC", code=1)
    assert "train.best=TC cannot choose the best epoch: TC is for an infrared" in output
    script("train.py", *prepared, *training, "train.best=MEFSSIM")
    (scores,) = (r for r in map(json.loads, (only_run(tmp_path) / "metrics.jsonl").open()) if r["kind"] == "val")
    assert {"MEFSSIM", "SD"} <= set(scores) and "TC" not in scores


def test_a_set_has_a_split_and_a_test_makes_its_own_sets_alone(prepared, tmp_path):
    for key in ("data.train", "data.val"):
        output = script("train.py", *prepared, "data.train=[Toy_train]", f"{key}=[Toy]", code=1)
        assert output.endswith(f"error: {key} names the dataset Toy; name a set of it: Toy_test, Toy_train")
    shutil.rmtree(tmp_path / "h5")
    words = [*prepared, "ckpt=null", "net={name: max}"]
    output = script("test.py", *words, "data.test=[Toy]", code=1)
    assert "data.test names the dataset Toy; name a set of it: Toy_test, Toy_train" in output
    output = script("test.py", *words, "data.test=[Toy_tset]", code=1)
    assert "data.test names Toy_tset, and Toy has no split 'tset': test, train" in output
    assert not (tmp_path / "h5").exists()
    script("test.py", *words)
    assert [path.name for path in (tmp_path / "h5").glob("*.h5")] == ["Toy_test.h5"]


def test_too_little_shared_memory_is_one_sentence(prepared, monkeypatch):
    """As in a container: it must not be found by a thread of a worker, while everybody waits."""
    share = torch.Tensor.share_memory_

    def share_few(tensor):
        if tensor.numel() > 100:
            raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device")
        return share(tensor)

    monkeypatch.setattr(torch.Tensor, "share_memory_", share_few)
    output = script("test.py", *prepared, "ckpt=null", "net={name: max}", "test.num_workers=1", code=1)
    assert output.splitlines()[-1].startswith("error: there is not enough memory to hand batches from process to")
    assert "num_workers=0" in output and "--shm-size" in output and "Traceback" not in output


def test_comparisons_of_large_images_can_be_looked_at(prepared, tmp_path):
    make_pairs(tmp_path / "VLF", ["b1"], "test", size=(100, 1300))
    script("data_process.py", *prepared, "Toy_test")
    script("test.py", *prepared, "ckpt=null", "net={name: max}", "--compare", "test.metrics=[EN]")
    out = tmp_path / "out" / "Toy"
    assert cv2.imread(str(out / "Gray" / "b1.png")).shape[:2] == (100, 1300)
    assert cv2.imread(str(out / "comparison.png")).shape[1] == 7 * (640 + 4)  # A, B, gray, colour, three more rules


def test_table_has_the_papers_form():
    row = {"EN": 6.72, "SD": 43.64, "SF": 11.55, "AG": 3.72, "VIFF": 1.06, "Qabf": 0.70}
    lines = [
        "=" * 80,
        "The test result of MSRS:",
        "                 EN      SD      SF      AG     VIFF     Qabf",
        "FILM            6.72    43.64   11.55   3.72    1.06    0.70",
        "=" * 80,
    ]
    assert format_table("MSRS", list(row), {"FILM": row}) == "\n".join(lines)


@pytest.mark.parametrize("name", ["train.py", "test.py", "data_process.py"])
def test_scripts_explain_themselves_and_mistakes(name):
    said = script(name, "--help")
    assert f"python {name} --config" in said and "their defaults are in utils/config.py" in said
    output = script(name, "--config", "configs/demo.yaml", "train.epoch=3", code=1)
    assert output.strip() == "error: unknown key 'train.epoch' in the command line; did you mean 'train.epochs'?"


def test_a_terminal_without_arrows_loses_nothing(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="latin-1"))
    run_script(lambda: print("Qcv↓", flush=True))
    assert sys.stdout.buffer.getvalue() == b"Qcv?\n"


def test_an_impossible_pattern_is_one_sentence(prepared):
    output = script("test.py", *prepared, "ckpt=exp/**x/last.pth", code=1)
    assert "ckpt=exp/**x/last.pth is no pattern" in output or "there is no checkpoint" in output
