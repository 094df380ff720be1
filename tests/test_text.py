"""Text encoders through the real loading code: tiny random models of the same classes, saved to a folder."""

import importlib.util
import json
import shutil

import cv2
import h5py
import numpy as np
import pytest
import torch

from net import FusionNetwork, build_model
from tests.toy import CONFIG, FAST, TINY_NET, make_pairs, script
from utils.config import load_config
from utils.data.features import check_feature
from utils.data.pairs import PairDataset
from utils.errors import InputError
from utils.guides.guidance import Guidance
from utils.guides.text import MINILM, TextEncoder, encoder_name
from utils.studies.text import change_from, p_values, text_study, variants

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS += ["a", "warm", "car", "stands", "at", "the", "dark", "road", "trees", "and", "sky"]

SIZES = dict(hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)


def save_tokenizer(folder) -> None:
    from transformers import BertTokenizerFast

    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=16).save_pretrained(folder)


def save_bert(folder) -> str:
    """A tiny AutoModel."""
    from transformers import BertConfig, BertModel

    save_tokenizer(folder)
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(WORDS), max_position_embeddings=16, **SIZES)).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> str:
    return save_bert(tmp_path_factory.mktemp("models") / "tiny-bert")


@pytest.fixture(scope="module")
def blip2(tmp_path_factory) -> str:
    """A tiny BLIP-2 with a Q-Former that takes text."""
    from transformers import Blip2Config, Blip2TextModelWithProjection

    folder = tmp_path_factory.mktemp("models") / "tiny-blip2"
    save_tokenizer(folder)
    torch.manual_seed(0)
    qformer = SIZES | dict(
        vocab_size=len(WORDS), max_position_embeddings=16, use_qformer_text_input=True, encoder_hidden_size=12
    )
    vision = SIZES | dict(image_size=8, patch_size=4)
    text = dict(
        hidden_size=12, num_hidden_layers=1, num_attention_heads=2, ffn_dim=16, vocab_size=20, word_embed_proj_dim=12
    )
    config = Blip2Config(vision_config=vision, qformer_config=qformer, text_config={"model_type": "opt", **text})
    Blip2TextModelWithProjection(config).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("kind", ["auto", "blip2"])
def test_tokens_of_both_paragraphs_in_order(kind, request):
    path = request.getfixturevalue({"auto": "bert", "blip2": "blip2"}[kind])
    encoder = TextEncoder(kind, path)
    assert encoder.dim == 12 and encoder.name == f"{kind}:tiny-{'bert' if kind == 'auto' else 'blip2'}"
    a, b = "a warm car stands at the road", "dark trees"
    (feature,) = encoder.encode_pairs([(a, b)])
    alone = [encoder.encode([text])[0] for text in (a, b)]
    assert [len(x) for x in alone] == [9, 4]  # words, [CLS] and [SEP]
    assert feature.shape == (13, 12) and feature.dtype == np.float32
    np.testing.assert_allclose(feature, np.concatenate(alone), atol=1e-5)  # padding changes nothing
    many = encoder.encode_pairs([(a, b), (b, a), (b, b)], batch_size=2)
    np.testing.assert_allclose(many[0], feature, atol=1e-5)
    np.testing.assert_allclose(many[1], np.concatenate(alone[::-1]), atol=1e-5)
    assert not any(p.requires_grad for p in encoder.model.parameters())


def test_long_paragraphs_are_cut_and_counted(bert):
    encoder = TextEncoder("auto", bert)
    features = encoder.encode(["car " * 40, "a car"])
    assert len(features[0]) == 16 and encoder.truncated == 1


def test_weights_that_cannot_be_had(tmp_path):
    for encoder in ("auto", "blip2"):
        with pytest.raises(InputError, match="cannot be loaded from .* give text.path"):
            TextEncoder(encoder, str(tmp_path))


@pytest.mark.skipif(importlib.util.find_spec(MINILM) is None, reason="needs the MiniLM package")
def test_minilm_knows_what_texts_mean():
    encoder = TextEncoder("auto")
    assert encoder.dim == 384 and encoder.name == encoder_name("auto", None)
    near, like, far = (f.mean(0) for f in encoder.encode(["a warm car", "a hot vehicle", "theorems of algebra"]))
    cosine = lambda x, y: x @ y / np.linalg.norm(x) / np.linalg.norm(y)  # noqa: E731
    assert cosine(near, like) > cosine(near, far) + 0.2


def test_data_process_encodes_and_caches(tmp_path, toy, bert):
    """Text/ where TextFeature/ has nothing; cached; made again only if the text changes."""
    base = tmp_path / "VLF"
    make_pairs(base, ["b1", "b2"], "test", size=(45, 53))
    (base / "TextFeature" / "IVF" / "Toy" / "b1.npy").unlink()
    for folder, text in (("IR", "a warm car"), ("VI", "the dark road")):
        (base / "Text" / "IVF" / "Toy" / folder).mkdir(parents=True)
        (base / "Text" / "IVF" / "Toy" / folder / "b1.txt").write_text(text)
    command = ["data_process.py", "--config", "configs/film_ivf.yaml", *toy, "Toy_test", "text.encoder=auto"]
    script(*command, f"text.path={bert}")
    expected = TextEncoder("auto", bert).encode_pairs([("a warm car", "the dark road")])[0]
    with h5py.File(tmp_path / "h5" / "Toy_test.h5") as file:
        np.testing.assert_allclose(file["text/b1"][()], expected, atol=1e-5)
        np.testing.assert_array_equal(file["text/b2"][()], np.load(base / "TextFeature/IVF/Toy/b2.npy"))
        assert file.attrs["text_encoder"] == "auto:tiny-bert"
    cached = list((tmp_path / "h5" / "TextFeature").rglob("*.npy"))
    assert len(cached) == 1
    np.save(cached[0], expected + 1)  # the cache is read
    script(*command, f"text.path={bert}")
    with h5py.File(tmp_path / "h5" / "Toy_test.h5") as file:
        np.testing.assert_allclose(file["text/b1"][()], expected + 1, atol=1e-5)
    (base / "Text" / "IVF" / "Toy" / "IR" / "b1.txt").write_text("dark trees")
    script(*command, f"text.path={bert}")
    with h5py.File(tmp_path / "h5" / "Toy_test.h5") as file:
        assert file["text/b1"].shape == (4 + 5, 12)
    np.save(base / "TextFeature/IVF/Toy/b2.npy", np.zeros((3, 13), np.float32))
    assert "13 wide" in script(*command, f"text.path={bert}", code=1)


def test_own_pair_with_text_of_ones_own(prepared, tmp_path, bert):
    """test.py encodes --text-a and --text-b with the encoder that the checkpoint was trained with."""
    encoder = ["text.encoder=auto", f"text.path={bert}"]
    script("data_process.py", *prepared, *encoder, "Toy_train")
    script("train.py", *prepared, *encoder, "train.epochs=1")
    (ckpt,) = (tmp_path / "exp").glob("*/model/last.pth")
    images = tmp_path / "VLF" / "Image" / "IVF" / "Toy"
    pair = ["--a", images / "IR" / "b1.png", "--b", images / "VI" / "b1.png"]
    (tmp_path / "a.txt").write_text("a warm car")
    words = ["--text-a", tmp_path / "a.txt", "--text-b", "the dark road", f"ckpt={ckpt}"]
    output = script("test.py", *pair, "--out", tmp_path / "x.png", *words)
    assert "default text" not in output and cv2.imread(str(tmp_path / "x.png")) is not None
    output = script("test.py", *pair, "--out", tmp_path / "y.png", *words, "text.path=/no/such", code=1)
    assert "cannot be loaded" in output and not (tmp_path / "y.png").exists()


def test_weights_of_another_model_are_refused(bert, blip2, tmp_path):
    """Not filled up with random numbers, and no traceback."""
    for encoder, path in (("blip2", bert), ("auto", blip2)):
        with pytest.raises(InputError, match="cannot be loaded from"):
            TextEncoder(encoder, path)
    damaged = shutil.copytree(bert, tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes(b"123")
    with pytest.raises(InputError, match="cannot be loaded from"):
        TextEncoder("auto", str(damaged))


def test_features_of_wrong_shape():
    assert check_feature(np.zeros((1, 3, 4), np.float32)).shape == (3, 4)
    for bad in (np.zeros(3), np.zeros((2, 3, 4)), np.zeros((0, 4)), np.zeros((3, 4), int), np.full((2, 2), np.inf)):
        with pytest.raises(ValueError):
            check_feature(bad)


def test_text_study(tmp_path, toy, bert):
    encoder = ["text.encoder=auto", f"text.path={bert}"]
    words = [*CONFIG, *toy, *FAST, *encoder, f"train.exp={tmp_path / 'exp'}", f"test.output={tmp_path / 'out'}"]
    script("data_process.py", *words)
    script("train.py", *words, "train.epochs=1", "test.num_workers=0")
    words.append(f"ckpt={tmp_path / 'exp'}/*/model/last.pth")
    output = script("utils.studies.text", *words, "--sentence", "a warm car stands at the road")
    folder = tmp_path / "out" / "Toy_test_text_study"
    summary = json.loads((folder / "metrics.json").read_text())
    others = ["another's", "shuffled tokens", "empty text", "default text", "the sentence"]
    assert list(summary["mean"]) == ["own text", *others] == list(summary["per_image"])
    assert list(summary["p"]) == list(summary["change"]) == others
    assert summary["sentence"] == "a warm car stands at the road" and summary["sentence"] in output
    for label, change in summary["change"].items():
        assert 0 < change["mean"] <= change["99 %"] < 255 and change["PSNR"] > 20
        assert change["mean"] == pytest.approx(
            np.mean([row["mean"] for row in summary["change_per_image"][label].values()])
        )
        assert f"{change['mean']:.3g}" in output and f"{change['PSNR']:.1f}" in output
    assert summary["change"]["shuffled tokens"]["99 %"] < 1e-3 < summary["change"]["another's"]["mean"]  # rounding
    assert {p for row in summary["p"].values() for p in row.values()} == {1.0}  # two images show nothing
    picture = cv2.imread(str(folder / "text_study.png"))
    assert picture.shape[0] > 4 * 45 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 100
    script("test.py", *words)
    usual = json.loads((tmp_path / "out" / "Toy" / "metrics.json").read_text())["mean"]["FILM"]
    assert summary["mean"]["own text"] == pytest.approx(usual, rel=1e-6)
    output = script("utils.studies.text", *CONFIG, *toy, "ckpt=null", "net={name: max}", code=1)
    assert "max reads no text" in output


def test_a_study_without_texts_is_one_sentence(tmp_path, toy):
    shutil.rmtree(tmp_path / "VLF" / "TextFeature")
    words = [*CONFIG, *toy, *FAST, "text.use=default", f"train.exp={tmp_path / 'exp'}"]
    script("data_process.py", *words)
    script("train.py", *words, "train.epochs=1")
    output = script("utils.studies.text", *words, f"ckpt={tmp_path / 'exp'}/*/model/last.pth", code=1)
    assert "holds no text" in output.splitlines()[-1]


class Reader(FusionNetwork):
    """The brighter source, darkened by the mean of the text; `gain` 0 ignores it."""

    name, inputs = "reader", ("text", "text_mask")

    def __init__(self, gain: float = 0.0):
        super().__init__()
        self.gain = gain

    def forward(self, image_a, image_b, text, text_mask):
        return torch.maximum(image_a, image_b) * torch.exp(-self.gain * text.mean().abs())


@pytest.mark.parametrize("gain", [0.0, 0.3])
def test_a_study_of_a_network_that_reads_and_of_one_that_does_not(gain, tmp_path, toy, bert):
    encoder = ["text.encoder=auto", f"text.path={bert}", "test.stretch=clamp"]
    script("data_process.py", *CONFIG, *toy, "Toy_test")
    config = load_config("configs/film_ivf.yaml", [*toy, *encoder])
    dataset = PairDataset([tmp_path / "h5" / "Toy_test.h5"])
    said = ("Toy_test", {"text": Guidance(None)}, TextEncoder("auto", bert), "a car")
    text_study(Reader(gain), dataset, *said, config, torch.device("cpu"), tmp_path)
    summary = json.loads((tmp_path / "metrics.json").read_text())
    assert set(summary["change"]) == {"another's", "shuffled tokens", "empty text", "the sentence"}  # no default
    for label, change in summary["change"].items():
        if gain and label != "shuffled tokens":
            assert 0 < change["mean"] < change["99 %"] and 0 < change["PSNR"] < 100
        if not gain:
            assert change == {"mean": 0, "99 %": 0, "PSNR": None} and len(summary["equal"][label]["PSNR"]) == 2
            assert set(summary["p"][label].values()) == {1.0}


def test_changes_are_those_of_an_example():
    own = np.zeros((10, 20), np.float32)
    other = own.copy()
    other[0] = 0.1  # a tenth of the pixels
    change = change_from(own, other)
    assert change == pytest.approx({"mean": 2.55, "99 %": 25.5, "PSNR": 30})
    assert change_from(own, own) == {"mean": 0, "99 %": 0, "PSNR": np.inf}


def test_p_values_are_signed_rank_tests_corrected_by_holm():
    """12 differences of one sign: exactly 2 ** -11, times the number of tests; and what does not differ."""
    rng = np.random.default_rng(0)
    own = {f"{i}": {"EN": 7.0, "SD": 50.0, "SF": 1.0, "CC": np.nan} for i in range(12)}
    up = {name: row | {"EN": 7 + rng.uniform(), "SD": 50 + 1e-12} for name, row in own.items()}
    noise = {name: row | {"EN": 7 + (-1) ** i * (i + 1)} for i, (name, row) in enumerate(own.items())}
    p = p_values({"own text": own, "up": up, "noise": noise})
    assert set(p) == {"up", "noise"} and p["up"]["EN"] == pytest.approx(8 * 2**-11)
    assert p["noise"]["EN"] == p["up"]["SD"] == p["up"]["SF"] == p["up"]["CC"] == 1


def test_gradients_along_the_text_path(toy):
    script("data_process.py", *CONFIG, *toy, "Toy_test")
    words = [*toy, "net.name=film", *TINY_NET]
    output = script("tools.text_gradients", *words)
    rows = {row[:32].strip(): row[32:].split() for row in output.splitlines() if row.endswith("%")}
    guidance = "stages.guidance"
    path = ["text_projection", *(f"{guidance}.in_proj {part}" for part in ("query", "key", "value"))]
    assert list(rows) == [*path, f"{guidance}.out_proj", "all convolutions", "all others"]
    model = build_model("film", text_dim=12, hidden_dim=16, channels=8, heads=2, stages=1, token_grid=[8, 8])
    assert sum(int(row[0]) for row in rows.values()) == sum(p.numel() for p in model.parameters())
    assert 0 < float(rows[path[1]][1]) < float(rows["all convolutions"][1])
    assert "network that reads text" in script("tools.text_gradients", *toy, "net={name: max}", code=1)


def test_every_pair_gets_the_text_of_another():
    class Texts:
        def __len__(self):
            return 7

        def feature(self, kind, i):
            return torch.full((5, 2), float(i)) + torch.arange(5)[:, None] / 10

    given = list(variants(Texts(), seed=3))
    others = [int(texts["another's"][0, 0]) for texts in given]
    assert sorted(others) == list(range(7)) and all(i != other for i, other in enumerate(others))
    for i, texts in enumerate(given):
        assert torch.equal(texts["own text"], Texts().feature("text", i))
        assert torch.equal(texts["shuffled tokens"].sort(dim=0).values, texts["own text"])
    assert any(not torch.equal(texts["shuffled tokens"], texts["own text"]) for texts in given)
