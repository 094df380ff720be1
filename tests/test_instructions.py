"""Instructions: the file of sentences, what they want of a pair, the network that reads them, and the way to a user."""

import json
import random

import cv2
import numpy as np
import pytest
import torch
import yaml

from net import build_model, load_model
from net.film_blend import FILMBlend
from net.film_instructed import Editor
from tests.test_scripts import losses
from tests.test_text import bert, save_bert  # noqa: F401
from tests.toy import CONFIG, FAST, ROOT, make_pairs, process, script
from utils.config import load_config
from utils.errors import InputError
from utils.instruct.guide import (
    encode_instructions,
    join_two,
    read_instructions,
    sentences_to_train,
    shares_of,
    split_sentences,
)
from utils.instruct.samples import DEGRADATIONS, UNRELATED, InstructionDraw, vary, wanted_sources
from utils.instruct.study import levels
from utils.loss import build_loss
from utils.own.fit import Picture
from utils.own.fuse import in_colour
from utils.provenance import GuideRecord

SMALL = dict(text_dim=12, hidden_dim=16, channels=8, heads=2, stages=2, token_grid=[8, 8])
ENTRIES = read_instructions(ROOT / "configs" / "instructions.yaml")
CPU = torch.device("cpu")


def images(count: int = 1, size: tuple[int, int] = (24, 30)) -> list[torch.Tensor]:
    return [*torch.rand(2, count, 1, *size), torch.randn(count, 5, 12)]


def obeying_network() -> torch.nn.Module:
    """A network that edits its sources, as after a training."""
    model = build_model("film_instructed", **SMALL, instruction_dim=12, editor_channels=8, editor_blocks=2)
    for editor in model.editors:
        for parameter in (editor.mix.weight, editor.conv_out.weight):
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def test_sentences_that_ship():
    assert len(ENTRIES) >= 8 and list(ENTRIES)[-1] == UNRELATED
    trained = {sentence.lower() for entry in ENTRIES.values() for sentence in entry.train}
    assert len(trained) == sum(len(entry.train) for entry in ENTRIES.values())  # none is in two entries
    for name, entry in ENTRIES.items():
        assert len(entry.train) >= 40 and len(set(entry.test)) >= 10, name
        assert not trained & {sentence.lower() for sentence in entry.test}, name


SAID = {"train": ["x"], "test": ["w"]}


@pytest.mark.parametrize(
    ("name", "entry", "message"),
    [
        ("a", SAID | {"want": "visible", "test": []}, "a.test in .* must have sentences"),
        ("a", SAID | {"want": "restored"}, "'a' in .* needs `want: restored` with `degrade`, or another `want` alone"),
        (UNRELATED, None, f"{UNRELATED} in .* must hold keys"),
    ],
)
def test_a_file_of_instructions_that_makes_no_sense(name, entry, message, tmp_path):
    entries = {"b": SAID | {"want": "visible"}, UNRELATED: SAID}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(entries | {name: entry}))
    with pytest.raises(InputError, match=message):
        read_instructions(tmp_path / "own.yaml")


def test_texts_are_cut_and_sentences_are_joined():
    text = "Remove the noise!  Keep the street bright; is that 1.5 stops?"
    assert split_sentences(text) == ["Remove the noise!", "Keep the street bright;", "is that 1.5 stops?"]
    text = join_two("Remove the noise.", "Brighten!", random.Random(0))
    assert text.startswith("Remove the noise") and text.endswith(" brighten!") and text[16] in " ,;"
    assert join_two("Remove the noise.", "IR only", random.Random(0)).endswith(" IR only")
    sentences = sentences_to_train(ENTRIES, 0)
    assert len(sentences) == len(ENTRIES) + 7 * 6 and sentences == sentences_to_train(ENTRIES, 0)


@pytest.fixture
def clean() -> dict[str, np.ndarray]:
    a, b = (cv2.GaussianBlur(np.random.default_rng(i).random((40, 50), np.float32), (0, 0), 2) for i in (1, 2))
    warm = np.zeros((40, 50), np.float32)
    warm[8:22, 20:34] = 1
    return {"image_a": a, "image_b": b * 0.8 + 0.1, "warm": warm}


@pytest.mark.parametrize("kind", DEGRADATIONS)
def test_degradations(kind, clean):
    degradation = DEGRADATIONS[kind]
    image = clean[degradation.source]
    one, same, other = (degradation(image, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(one, same) and not np.array_equal(one, other) and one.dtype == np.float32
    assert np.allclose(one * 255, (one * 255).round(), atol=1e-4) and one.min() >= 0 and one.max() <= 1  # 8 bit
    assert levels(one, image) > 2
    assert all(low <= tested <= high for low, high, tested in degradation.values.values())
    if kind == "over":  # a dark scene, too
        assert degradation(0.3 * image, np.random.default_rng(0)).mean() > 0.6


def test_only_what_is_named_is_undone(clean):
    """What is not named stays, what is named and not there changes nothing, and two wishes are both obeyed."""
    rng = np.random.default_rng(0)
    present = {kind: DEGRADATIONS[kind](clean[DEGRADATIONS[kind].source], rng) for kind in ("noise", "dark")}
    a, b = clean["image_a"], clean["image_b"]

    def want(*names: str, of: dict = present) -> tuple[np.ndarray, np.ndarray]:
        return wanted_sources(clean, of, [ENTRIES[name] for name in names])

    def same(got: tuple, wanted: tuple) -> bool:
        return all(np.array_equal(*pair) for pair in zip(got, wanted))

    assert same(want(), (present["noise"], present["dark"]))
    assert same(want("denoise_infrared"), (a, present["dark"]))
    assert same(want("denoise_infrared", "brighten_visible"), (a, b))
    assert same(want("contrast_infrared", "tame_glare"), (present["noise"], present["dark"]))
    assert same(want("contrast_infrared", "tame_glare", of={}), (a, b))
    assert same(want("follow_infrared"), (present["noise"],) * 2)
    assert same(want("follow_visible", "brighten_visible"), (b, b))
    lifted, pasted = want("highlight_targets", of={})
    inside, far = clean["warm"] > 0, np.s_[30:, :10]
    assert (lifted - a)[inside].mean() > 0.1 and (pasted >= b).all()
    core = np.s_[13:17, 25:29]
    assert np.abs(pasted - np.maximum(lifted, b))[core].max() < 0.05 and (pasted > b + 0.05)[core].any()
    assert np.array_equal(lifted[far], a[far]) and np.allclose(pasted[far], b[far], atol=1e-3)
    both, again = want("highlight_targets", "follow_visible", of={})
    assert np.array_equal(both, again) and np.array_equal(both, pasted)


@pytest.fixture
def draw() -> InstructionDraw:
    names = [name for name in ENTRIES if name != UNRELATED]
    features = {(name,): [torch.full((i + 2, 4), float(i + 1))] for i, name in enumerate(ENTRIES)}
    features |= {(one, two): [torch.full((3, 4), 100.0)] for one in names for two in names if one != two}
    return InstructionDraw({name: ENTRIES[name] for name in names}, features)


def test_other_cameras(clean):
    """A becomes less sharp and B darker; what is degraded keeps its exposure, as that is what is to be found again."""
    for kinds, b_varies in (((), True), (("dark",), False)):
        varied = [vary(clean, kinds, np.random.default_rng(seed)) for seed in range(60)]
        a, b = ([v[key] for v in varied if not np.array_equal(v[key], clean[key])] for key in ("image_a", "image_b"))
        assert 0 < len(a) < 60 and all(image.std() < clean["image_a"].std() for image in a)
        assert (0 < len(b) < 60) == b_varies
        assert not b or np.mean([image.mean() for image in b]) < 0.9 * clean["image_b"].mean()
        assert all(image.min() >= 0 and image.max() <= 1 and image.dtype == np.float32 for image in [*a, *b])


def test_draws(draw, clean, monkeypatch):
    monkeypatch.setattr("utils.instruct.samples.VARIED", 0)
    maps = {key: value[None] for key, value in clean.items()}
    counts = np.zeros(3, int)
    for seed in range(100):
        (found, beside), (again, beside_again) = (draw(maps, np.random.default_rng(seed)) for _ in range(2))
        assert all(np.array_equal(found[key], again[key]) for key in found)
        assert all(torch.equal(beside[key], beside_again[key]) for key in beside)
        names = {name for name, strength in zip(draw.instructions, beside["strengths"].tolist()) if strength == 1}
        counts[len(names)] += 1
        assert not {"follow_infrared", "follow_visible"} <= names
        if not names:
            assert all(np.array_equal(found[f"wanted_{x}"], found[f"image_{x}"]) for x in "ab")
            assert not beside["instruction"].any()
        assert beside["practice"].shape == (16, draw.length, 4) and beside["asked"].shape == (16, 7)
        assert beside["weight"] == max([ENTRIES[name].weight for name in names], default=1)
    assert counts[0] > 1 and counts[1:].min() > 20


@torch.no_grad()
def test_without_an_instruction_it_is_film_blend():
    model, blend = obeying_network(), build_model("film_blend", **SMALL).eval()
    blend.load_state_dict({name: model.state_dict()[name] for name in blend.state_dict()})
    given, nothing = images(2), torch.zeros(2, 3, 12)
    assert torch.equal(model(*given), blend(*given))
    for a, b in (given[:2], [given[0]] * 2):  # alike ones, too, since nobody chose one
        assert torch.equal(model(a, b, given[2], None, nothing), blend(a, b, given[2]))


@torch.no_grad()
def test_each_pair_of_a_batch_has_its_instruction_and_padding_changes_nothing():
    model, texts = obeying_network(), [torch.zeros(1, 12), 3 * torch.randn(3, 12), 3 * torch.randn(5, 12)]
    model.reader.output.bias.copy_(torch.tensor([9.0] * 3 + [-9.0] * 4))
    given = images(3)
    together = model(*given, None, torch.nn.utils.rnn.pad_sequence(texts, batch_first=True))
    alone = [model(*(x[i : i + 1] for x in given), None, texts[i][None]) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-6)
    plain = model(*given)
    assert [levels(together[i].numpy(), plain[i].numpy()) > 0.5 for i in range(3)] == [False, True, True]


def test_a_source_that_is_chosen_is_the_result():
    """FILM blend makes something else even of two equal sources."""
    model, (a, b, text) = obeying_network(), images(2)
    with torch.no_grad():
        model.reader.output.bias.fill_(9)
        model.edit = lambda a, b, strengths: torch.cat([a, torch.stack([a[0] + 4 / 255, b[1]])], dim=1).clamp(0, 1)
        results = model(a.clamp(max=0.9), b, text, None, torch.ones(2, 3, 12))
        fused = FILMBlend.forward(model, *model.edit(a.clamp(max=0.9), b, None).split(1, dim=1), text)
    torch.testing.assert_close(results[1], fused[1])
    halfway = (fused[0] + a[0].clamp(max=0.9) + 2 / 255) / 2
    torch.testing.assert_close(results[0], halfway, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "logit", "shares", "chroma"),
    [
        ("denoise_infrared", 9, (1, 1), (40**2 - 38**2) / 78),  # of -38 and 40, each by how far it is from gray
        ("follow_infrared", 9, (1, 0), -38),
        ("follow_visible", 9, (0, 1), 40),
        ("follow_infrared", 0, (1, 0.5), (20**2 - 38**2) / 58),
    ],
)
def test_a_result_has_the_colour_of_what_is_followed(name, logit, shares, chroma):
    model, names = obeying_network(), [name for name in ENTRIES if name != UNRELATED]
    with torch.no_grad():
        model.reader.output.weight.zero_()
        model.reader.output.bias.copy_(torch.tensor([logit if each == name else -9.0 for each in names]))
    text = torch.randn(3, 12)
    assert shares_of(text, model) == (1, 1)  # nobody says what it was trained with
    model.provenance.guides["instruction"] = GuideRecord("x", options={"instructions": ",".join(names)})
    assert shares_of(text, model) == shares
    gray = np.full((4, 5), 128, np.uint8)
    a, b = (Picture(np.zeros((4, 5), np.float32), np.full((2, 4, 5), 128 + c, np.uint8)) for c in (-38, 40))
    found = cv2.cvtColor(in_colour(gray, (a, b), shares), cv2.COLOR_BGR2YCrCb)[..., 1:]
    np.testing.assert_allclose(found, 128 + chroma, atol=2)
    alone = in_colour(gray, (Picture(a.gray, None), b), shares)
    assert (np.ptp(alone, axis=2).max() == 0) == (name == "follow_infrared" and logit == 9)


def test_what_an_editor_can_do():
    """Give each pixel of the other source; raise the contrast of one by as much, whatever it was."""
    editor, pair = Editor(8, 1), torch.rand(1, 2, 21, 30)
    pair = torch.cat([pair, 0.5 + 0.2 * (pair - 0.5)])
    with torch.no_grad():
        assert not editor(pair).any()  # at first nothing
        editor.conv_out.bias[:8] = 1  # the share of the other source
        torch.testing.assert_close(pair + editor(pair), pair.flip(1))
        editor.conv_out.bias.zero_()
        editor.mix.bias[2] = 0.2  # A gets this much of A with mean 0 and deviation 1
        edited = pair + editor(pair)
    before, after = (x.std(dim=(2, 3)) for x in (pair, edited))
    torch.testing.assert_close(after[:, 0] - before[:, 0], torch.full((2,), 0.2), rtol=0, atol=0.04)
    assert torch.equal(edited[:, 1], pair[:, 1]) and after[1, 0] > 3 * before[1, 0]
    torch.testing.assert_close(edited.mean(dim=(2, 3)), pair.mean(dim=(2, 3)))


def test_reader_and_editors_learn_and_the_fusion_stays():
    model, criterion = obeying_network(), build_loss({"name": "instructed", "reading_weight": 0.5})
    a, b, text = images(2)
    batch = {"image_a": a, "image_b": b, "text": text, "text_mask": torch.ones(2, 5, dtype=torch.bool)}
    batch |= {"wanted_a": b, "wanted_b": torch.stack([b[0], a[1]]), "weight": torch.tensor([1.0, 3.0])}
    batch |= {"warm": torch.zeros_like(a), "strengths": torch.ones(2, 7), "instruction": torch.zeros(2, 1, 12)}
    batch |= {"practice": torch.randn(2, 3, 4, 12), "asked": torch.randint(0, 2, (2, 3, 7)).float()}
    criterion(model(*model.forward_args(batch)), **batch, **model.loss_inputs(batch))["total"].backward()
    for name, parameter in model.named_parameters():
        learns = parameter.grad is not None and parameter.grad.abs().max() > 0
        assert learns == name.startswith(("reader.", "editors.")), name
    model.train().zero_grad()
    model(*model.forward_args(batch | {"strengths": torch.eye(7)[:2]})).sum().backward()
    for number, editor in enumerate(model.editors):  # in training all have gradients, if zeros
        assert {p.grad.any().item() for p in editor.parameters()} == {number < 2}

    # each sample has its own weight, and an error on a target counts three times more
    with torch.no_grad():
        wanted = torch.cat([batch["wanted_a"], batch["wanted_b"]], dim=1)
        worse = wanted + torch.tensor([0.0, 0.1])[:, None, None, None]
        perfect, off = (criterion(edited, **batch, **model.loss_inputs(batch)) for edited in (wanted, worse))
        batch["warm"][1, 0, :5] = 1
        off_there = criterion(worse, **batch, **model.loss_inputs(batch))
    assert perfect["intensity"] == perfect["gradient"] == 0
    assert perfect["total"].item() == pytest.approx(0.5 * perfect["misread"].item())
    assert (off["total"] - perfect["total"]).item() == pytest.approx(3 * 2 * 0.1 / 2, rel=1e-3)
    more = (1 + 3 * 5 / a.shape[2]) * 3 * 2 * 0.1 / 2
    assert (off_there["total"] - perfect["total"]).item() == pytest.approx(more, rel=1e-3)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, bert):  # noqa: F811
    """A tiny network, trained with instructions: its folder, the words of its training, both checkpoints."""
    folder = tmp_path_factory.mktemp("instructed")
    make_pairs(folder / "VLF", ["a1", "a2", "a3", "a4"], "train")
    make_pairs(folder / "VLF", ["b1", "b2"], "test", size=(45, 53))
    (folder / "datasets.yaml").write_text("Toy: {task: IVF, a: IR, b: VI, color: [VI]}\n")
    entries = {
        "visible": {"want": "visible", "train": ["the road"], "test": ["a road"]},
        "clean": {"degrade": "noise", "want": "restored", "train": ["a warm car"], "test": ["the car", "warm car"]},
        "bright": {"degrade": "dark", "want": "restored", "train": ["the sky"], "test": ["a sky"]},
        "people": {"want": "targets", "train": ["dark trees"], "test": ["the trees"]},
        UNRELATED: {"train": ["stands at"], "test": ["and a"]},
    }
    (folder / "own.yaml").write_text(yaml.safe_dump(entries, sort_keys=False))
    words = [*CONFIG, f"data.root={folder / 'VLF'}", f"data.h5={folder / 'h5'}", "device=cpu", "data.resize=null"]
    words += [f"data.datasets={folder / 'datasets.yaml'}", "data.train=[Toy_train]", "data.test=[Toy_test]", *FAST]
    words += ["text.encoder=auto", f"text.path={bert}", f"text.instructions={folder / 'own.yaml'}", "text.use=default"]
    words += [f"train.exp={folder / 'exp'}", f"test.output={folder / 'out'}", "test.num_workers=0", "train.epochs=1"]
    script("data_process.py", *words, "loss={name: fusion, gradient: vector, contrast_weight: 0.1}")
    script("train.py", *words, "net.name=film_blend", "name=first")
    (first,) = (folder / "exp").glob("*_first/model/last.pth")
    words += ["net.name=film_instructed", "net.instructions=4", "net.instruction_dim=12"]
    words += ["loss={name: instructed}", f"train.init={first}"]
    assert "instructions read by auto:" in script("train.py", *words, "name=second", "train.epochs=2")
    (second,) = (folder / "exp").glob("*_second/model/last.pth")
    return folder, words, first, second


def test_a_training_with_instructions(trained):
    folder, words, first, second = trained
    (picture,) = (folder / "exp").glob("*_second/pic_fusion/1_a1/*.png")
    assert cv2.imread(str(picture)).shape[1] == 3 * (48 + 4)  # A, B, and what becomes of them unasked
    model, before = load_model(second), load_model(first)
    record = model.provenance.guides["instruction"]
    assert record.options["instructions"] == "visible,clean,bright,people" and record.default is None
    own = model.state_dict()
    assert all(torch.equal(own.pop(name), value) for name, value in before.state_dict().items())
    assert own.keys() and all(name.startswith(("reader.", "editors.")) for name in own)

    config = load_config("configs/film_ivf.yaml", [word for word in words if "=" in str(word)])
    car, sky, both = encode_instructions(["a warm car.", "the sky", "a warm car. the sky"], config, model, CPU)
    assert sky.shape == (4, 12)  # with [CLS] and [SEP]
    torch.testing.assert_close(both, torch.cat([car, sky]))
    with pytest.raises(InputError, match="FILM blend reads no instructions; give weights that do"):
        encode_instructions(["the road"], config, before, CPU)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("net.instructions=5", "set net.instructions=4"),
        ("net.instruction_dim=13", "is 12 wide and the network takes instructions 13 wide"),
        ("train.init=null", "trains a part of its weights; give the others as train.init"),
    ],
)
def test_a_training_that_does_not_fit_its_instructions(word, message, trained):
    output = script("train.py", *trained[1], word, code=1)
    assert message in output and "Traceback" not in output


@pytest.mark.slow
def test_two_processes_learn_to_obey_as_one(trained):
    """Whatever instructions each process draws."""
    folder, words, *_ = trained
    words = [*words, "train.epochs=2", "train.batch_size=2"]
    script("train.py", *words, "name=one")
    process("-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", "train.py", *words, "name=two")
    one, two = (next((folder / "exp").glob(f"*_{name}")) for name in ("one", "two"))
    assert losses(two) == pytest.approx(losses(one), rel=1e-5) and len(losses(one)) > 2


def test_the_study_of_instructions(trained):
    folder, words, _, second = trained
    script("utils.instruct.study", *words, f"ckpt={second}")
    found = json.loads((folder / "out" / "Toy_test_instruction_study" / "instructions.json").read_text())
    assert {"visible", "clean", "bright", "people"} <= set(found["measured"]) and 0 <= found["accuracy"] <= 1
    assert len(found["all"]["clean"]) == 2 * 3 and found["all"]["clean"][0][1] == "the car"
    assert {"clean, absent", "bright, absent", UNRELATED} <= set(found["measured"])
    row, values = found["measured"]["clean"], np.array([each[2:] for each in found["all"]["clean"]])
    assert [row["without"], row["with"]] == pytest.approx(values.mean(axis=0).tolist())


@torch.inference_mode()
def test_the_weights_that_ship_obey():
    """On the pair of the sample, in words that were not trained on."""
    model, plain = (load_model(ROOT / "models" / f"{name}.safetensors") for name in ("IVF_instruct", "IVF"))
    own = model.state_dict()
    assert all(torch.equal(own[name], value) for name, value in plain.state_dict().items())  # without one it is IVF
    folder = ROOT / "tests" / "sample" / "Image" / "IVF" / "SampleIVF"
    sources = [cv2.imread(str(folder / side / "street.jpg"), cv2.IMREAD_GRAYSCALE) for side in ("IR", "VI")]
    a, b = (torch.from_numpy(source)[None, None] / 255 for source in sources)
    texts = ["Pixels should carry the values of the infrared source."]
    texts += ["I would like to look at this scene with my own eyes.", "The river flows into the sea."]
    features = encode_instructions(texts, load_config("configs/film_instruct_ivf.yaml"), model, CPU)
    default = model.provenance.guides["text"].default[None]
    without = model(a, b, default).numpy()
    infrared, visible, unrelated = (model(a, b, default, None, each[None]).numpy() for each in features)
    for result, source in ((infrared, a.numpy()), (visible, b.numpy())):
        assert levels(result, source) < levels(without, source) / 2
    assert levels(unrelated, without) < 1.5
