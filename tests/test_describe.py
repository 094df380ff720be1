"""From images to paragraphs: tiny random models of the real classes, and a real server that behaves badly."""

import http.server
import json
import shutil
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from tests.toy import contents, make_pairs, script
from utils.describe import endpoint, models, paragraphs
from utils.describe.command import modality_of
from utils.describe.prompt import fill_template, matching_label, place_in_words

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} {% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}{{ '<image>' if c['type'] == 'image' else c['text'] }} {% endfor %}"
    "{% endif %}{% endfor %}"
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> dict[str, str]:
    """A folder for each part: BLIP-2, Florence-2, Segment Anything, a chat model, one that also gets the image."""
    import tokenizers
    import transformers as t

    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("models")
    special = ["<pad>", "<s>", "</s>", "<unk>", "<image>", *(f"<loc_{i}>" for i in range(1000))]
    vocabulary = [*special, "a", "the", "warm", "car", "stands", "at", "road", "image", "of", "user", "assistant"]
    plain = tokenizers.models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>")
    words = t.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(plain),
        additional_special_tokens=special[5:],
        extra_special_tokens={"image_token": "<image>"},
        chat_template=TEMPLATE,
        **dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), special)),
    )
    words.backend_tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    ids = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)
    layers = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    sizes, square = layers | dict(intermediate_size=16), dict(height=32, width=32)

    def save(part: str, *objects) -> None:
        for each in objects:
            each.save_pretrained(root / part)

    text = dict(model_type="opt", ffn_dim=16, word_embed_proj_dim=16, max_position_embeddings=64, vocab_size=len(words))
    config = t.Blip2Config(
        vision_config=sizes | dict(image_size=16, patch_size=8),
        qformer_config=sizes | dict(vocab_size=len(words), encoder_hidden_size=16),
        text_config=text | layers,
        num_query_tokens=3,
        image_token_index=4,
    )
    images = t.BlipImageProcessor(size=dict(height=16, width=16))
    save("caption", t.Blip2ForConditionalGeneration(config), t.Blip2Processor(images, words, num_query_tokens=3))

    text = dict(model_type="bart", d_model=16, vocab_size=len(words), max_position_embeddings=512)
    for half in ("encoder", "decoder"):
        text |= {f"{half}_layers": 1, f"{half}_attention_heads": 2, f"{half}_ffn_dim": 16}
    vision = dict(embed_dim=[8, 8], num_heads=[2, 2], num_groups=[2, 2], depths=[1, 1], patch_size=[7, 3])
    vision |= dict(patch_stride=[4, 2], patch_padding=[3, 1], patch_prenorm=[False, True], projection_dim=16)
    config = t.Florence2Config(
        vision_config=vision | dict(window_size=2),
        text_config=text | ids | dict(decoder_start_token_id=2, forced_eos_token_id=2, is_encoder_decoder=True),
        image_token_id=4,
        **ids,
    )
    images = t.CLIPImageProcessor(size=square, crop_size=square, do_center_crop=False, image_seq_length=17)
    options = dict(num_additional_image_tokens=1, post_processor_config={"description_with_bboxes": {}})
    save("dense", t.Florence2ForConditionalGeneration(config), t.Florence2Processor(images, words, **options))

    vision = dict(mlp_dim=16, output_channels=8, window_size=2, global_attn_indexes=[0], num_pos_feats=4)
    config = t.SamConfig(
        vision_config=layers | dict(image_size=32, patch_size=8) | vision,
        prompt_encoder_config=dict(hidden_size=8, image_size=32, patch_size=8, mask_input_channels=4),
        mask_decoder_config=layers | dict(hidden_size=8, mlp_dim=8, iou_head_hidden_dim=8),
    )
    options = dict(size={"longest_edge": 32}, pad_size=square, mask_size={"longest_edge": 16})
    images = t.SamImageProcessor(**options, mask_pad_size=dict(height=16, width=16))
    save("segments", t.SamModel(config), t.SamProcessor(images))

    text = sizes | ids | dict(model_type="llama", num_key_value_heads=2, vocab_size=len(words))
    vision = sizes | dict(model_type="clip_vision_model", image_size=32, patch_size=8, projection_dim=16)
    config = t.LlavaConfig(vision_config=vision, text_config=text, image_token_index=4, image_seq_length=16)
    talks, sees = t.LlamaForCausalLM(t.LlamaConfig(**text)), t.LlavaForConditionalGeneration(config)
    for chat in (talks, sees):
        chat.generation_config.suppress_tokens = list(range(len(special)))  # words only
    images = t.CLIPImageProcessor(size=dict(shortest_edge=32), crop_size=square)
    options = dict(patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1)
    save("chat", talks, words)
    save("sees", sees, t.LlavaProcessor(images, words, **options, chat_template=TEMPLATE))
    return {path.name: str(path) for path in root.iterdir()}


@pytest.fixture
def pairs(toy, tmp_path, tiny) -> list[str]:
    """Three pairs without any text, and the overrides that describe them with the tiny models."""
    shutil.rmtree(tmp_path / "VLF")
    make_pairs(tmp_path / "VLF", ["a1", "a2", "a3"], "test")
    words = ["--config", "configs/text.yaml", *toy, "data.train=[]"]
    words += ["describe.max_tokens=6", "describe.points=2", "describe.batch_size=2"]
    return words + [f"describe.{part}={tiny[part]}" for part in ("caption", "dense", "segments", "chat")]


@pytest.fixture
def seeing(pairs, tiny) -> list[str]:
    return [*pairs, "describe.way=image", f"describe.chat={tiny['sees']}", "describe.template=configs/prompt_image.txt"]


@pytest.fixture
def texts(tmp_path) -> Path:
    return tmp_path / "VLF" / "Text" / "IVF" / "Toy"


def describe(*words, code: int = 0) -> str:
    return script("data_process.py", "describe", *words, code=code)


@pytest.fixture
def loaded(monkeypatch) -> list[str]:
    """The classes of models in the order in which they are loaded."""
    names = []
    for kind in ("Captioner", "DenseCaptioner", "Segmenter", "LocalChat"):
        plain = getattr(paragraphs, kind)
        monkeypatch.setattr(paragraphs, kind, lambda *a, kind=kind, plain=plain: names.append(kind) or plain(*a))
    return names


def change_image(folder: Path) -> None:
    path = folder / "VLF" / "Image" / "IVF" / "Toy" / "VI" / "a2.png"
    cv2.imwrite(str(path), 255 - cv2.imread(str(path)))


class Server(http.server.ThreadingHTTPServer):
    """Speaks the protocol; `script` is what it does with the next requests, then it answers well."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.requests, self.lock = [], [], threading.Lock()
        threading.Thread(target=self.serve_forever, args=[0.01], daemon=True).start()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.server.lock:
            self.server.requests.append((self.path, self.headers["authorization"], body))
            what = self.server.script.pop(0) if self.server.script else "well"
        time.sleep({"slow": 1, 401: 0.1}.get(what, 0))
        status = 400 if what == "leak" else what if isinstance(what, int) else 200
        message = {"role": "assistant", "content": "" if what == "empty" else "A warm car stands at the road."}
        usage = None if what == "uncounted" else {"prompt_tokens": 70, "completion_tokens": 8, "total_tokens": 78}
        answer = {"id": "1", "created": 1, "model": body["model"], "system_fingerprint": "", "usage": usage}
        answer["choices"] = [{"index": 0, "finish_reason": "stop", "message": message}]
        data = b'{"choices": [' if what == "broken" else json.dumps(answer).encode()
        if what == "leak":  # the key, where a message of 200 characters ends
            data = b"x" * 190 + self.headers["authorization"].removeprefix("Bearer ").encode() * 2
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *words):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(endpoint, "BACKOFF", 0.001)
    monkeypatch.setenv("TEST_KEY", "sk-very-secret")
    server = Server()
    server.words = [f"describe.url=http://127.0.0.1:{server.server_port}/v1", "describe.key=TEST_KEY"]
    server.words += ["describe.way=image", "describe.template=configs/prompt_image.txt", "describe.chat=some-model"]
    yield server
    server.shutdown()
    server.server_close()


def test_every_part_by_local_models(pairs, texts, tiny, monkeypatch):
    """Random models find nothing, so two are told what they find."""
    from transformers import Florence2Processor, MaskGenerationPipeline

    plain = MaskGenerationPipeline.__call__
    loose = dict(pred_iou_thresh=-9, stability_score_thresh=-9)
    words = "<s>a warm car<loc_0><loc_0><loc_499><loc_499></s>"
    monkeypatch.setattr(models, "inference_dtype", lambda device: torch.bfloat16)  # as on a GPU
    monkeypatch.setattr(MaskGenerationPipeline, "__call__", lambda self, image, **o: plain(self, image, **o, **loose))
    monkeypatch.setattr(Florence2Processor, "batch_decode", lambda self, tokens, **o: [words] * len(tokens))
    output = describe(*pairs)
    assert "6 paragraphs written, 0 were up to date, 0 failed" in output
    assert "images of IR are taken as infrared; describe.modality can say it" in output
    for folder, modality in (("IR", "infrared"), ("VI", "visible light")):
        for name in ("a1", "a2", "a3"):
            record = json.loads((texts / folder / f"{name}.json").read_text())
            assert record["paragraph"] and record["paragraph"] == (texts / folder / f"{name}.txt").read_text().strip()
            made_by = [made["model"] for made in record["made_by"].values()]
            assert made_by == [tiny[part] for part in ("caption", "dense", "segments", "chat")]
            assert f"one {modality} image of 48 x 40 pixels" in record["prompt"]
            assert record["caption"] in record["prompt"]
            assert record["dense"] == [{"label": "a warm car", "box": [0, 0, 23, 19]}]
            assert "a warm car at the top left" in record["prompt"] and record["segments"]
            for segment in record["segments"]:
                left, top, right, bottom = segment["box"]
                assert 0 <= left < right <= 48 and 0 <= top < bottom <= 40 and 0 < segment["share"] <= 1
                assert f"{100 * segment['share']:.0f} % of the image" in record["prompt"]


def test_captions_alone_in_a_folder_of_their_own(pairs, texts, tiny, tmp_path, loaded, monkeypatch):
    """The ablation of whole paragraphs: a caption is the paragraph, and no other model is loaded."""
    monkeypatch.setattr(models.Captioner, "__call__", lambda self, images: ["a {warm} car"] * len(images))
    folder = tmp_path / "VLF" / "Captions" / "IVF" / "Toy"
    assert "6 paragraphs written, 0" in describe(*pairs, "describe.way=caption", "text.folder=Captions")
    assert loaded == ["Captioner"] and (folder / "IR" / "a1.txt").read_text() == "a {warm} car\n"
    made_by = json.loads((folder / "VI" / "a3.json").read_text())["made_by"]
    assert {part: made["model"] for part, made in made_by.items()} == dict.fromkeys(
        ("caption", "paragraph"), tiny["caption"]
    )
    assert "0 paragraphs written, 6" in describe(*pairs, "describe.way=caption", "text.folder=Captions")
    assert loaded == ["Captioner"] and not texts.exists()


def test_a_repetition_makes_only_what_has_changed(pairs, tmp_path, texts, loaded):
    describe(*pairs)
    loaded.clear()
    (texts / "IR" / "a1.txt").unlink()
    (texts / "IR" / "a2.txt").write_text(" ")
    assert "0 paragraphs written, 6 were up to date" in describe(*pairs)
    assert loaded == []  # no model at all, the JSON has the texts
    assert all((texts / "IR" / f"{name}.txt").read_text().strip() for name in ("a1", "a2"))
    output = describe(*pairs, "describe.modality={IR: thermal}")
    assert "3 paragraphs written, 3 were up to date" in output and loaded == ["LocalChat"]
    loaded.clear()
    describe(*pairs, "describe.points=3")
    assert loaded[0] == "Segmenter" and "Captioner" not in loaded
    loaded.clear()
    change_image(tmp_path)
    assert "1 paragraphs written, 5 were up to date" in describe(*pairs, "describe.points=3")
    assert loaded == ["Captioner", "DenseCaptioner", "Segmenter", "LocalChat"]


def test_a_model_that_gets_the_image(seeing, texts, monkeypatch):
    monkeypatch.setattr(models, "inference_dtype", lambda device: torch.bfloat16)
    assert "6 paragraphs written" in describe(*seeing)
    assert set(json.loads((texts / "VI" / "a3.json").read_text())["made_by"]) == {"paragraph"}


def test_chat_runs_in_batches_and_one_by_one_where_a_batch_fails(seeing, monkeypatch):
    sizes = []

    def answer(self, images, prompts):
        sizes.append(len(images))
        if len(sizes) < 3:
            raise RuntimeError("too long")
        return ["" if len(sizes) == 3 else "A road."] * len(images)

    monkeypatch.setattr(models.LocalChat, "__call__", answer)
    output = describe(*seeing, code=1)
    assert sizes == [2, 1, 1, 2, 2] and "4 paragraphs written, 0 were up to date, 2 failed" in output
    assert "IR/a1.png: no paragraph (too long)" in output and "IR/a2.png: no paragraph (an empty text)" in output


def test_the_kind_of_images(capsys):
    assert modality_of("IR", {}) == modality_of("x/*_ir", {}) == "infrared"
    assert modality_of("*_vis", {}) == "visible light"
    assert modality_of("*_vis", {"*_vis": "night vision"}) == "night vision"
    assert modality_of("T/*_t", {}) == ""
    assert "images of T/*_t get a prompt that does not say their kind; describe.modality" in capsys.readouterr().out
    prompt = fill_template("One {modality} image of {width} pixels.", "", {"width": 9, "height": 9})
    assert prompt == "One image of 9 pixels."


def test_places_and_names_of_segments():
    record = {"width": 90, "height": 60, "dense": [{"label": "a car", "box": [0, 0, 30, 20]}]}
    assert place_in_words([0, 0, 30, 20], record) == "the top left"
    assert place_in_words([30, 20, 60, 40], record) == "the middle centre"
    assert matching_label([0, 0, 28, 20], record) == "a car"
    assert matching_label([50, 0, 90, 60], record) == ""
    mask = np.zeros((60, 90), bool)
    mask[10:20, 30:60] = True
    (segment,) = models.measure_masks([mask, np.zeros_like(mask)])
    assert segment == {"share": round(300 / 5400, 4), "box": [30, 10, 60, 20]}


def test_a_text_written_by_hand_is_left_alone(pairs, texts, server):
    path = texts / "IR" / "a1.txt"
    path.parent.mkdir(parents=True)
    path.write_text("My own words.")
    output = describe(*pairs, *server.words)
    assert "1 texts were written or changed by somebody" in output and path.read_text() == "My own words."
    assert len(server.requests) == 5
    edited = texts / "VI" / "a1.txt"
    edited.write_text("My correction.")  # nor is a paragraph that was corrected
    output = describe(*pairs, *server.words, "describe.chat=another")
    assert edited.read_text() == "My correction." and "4 paragraphs written, 0 were up to date" in output


def test_a_damaged_json_is_made_again(pairs, texts, server):
    describe(*pairs, *server.words)
    for name, content in (("a1", "{"), ("a2", "[1]"), ("a3", "{}")):
        (texts / "IR" / f"{name}.json").write_text(content)
        (texts / "IR" / f"{name}.txt").unlink()
    assert "3 paragraphs written, 3 were up to date, 0 failed" in describe(*pairs, *server.words)


def test_one_bad_image_stops_no_other_and_a_second_split_no_work(pairs, tmp_path, texts, server):
    image = tmp_path / "VLF" / "Image" / "IVF" / "Toy"
    (image / "all.txt").write_text((image / "test.txt").read_text())
    (image / "IR" / "a1.png").write_text("not an image")
    (image / "VI" / "a2.png").unlink()
    output = describe(*pairs, *server.words, "Toy", code=1)
    assert "IR/a1.png is not an image" in output and "'a2' has no image in" in output
    assert "4 paragraphs written" in output and len([*texts.rglob("*.txt")]) == len(server.requests) == 4


@pytest.mark.parametrize("trouble", [[429, 500], ["broken", "empty"], ["slow"]], ids=str)
def test_a_bad_server_is_asked_again(pairs, texts, server, trouble):
    server.script = [*trouble, "uncounted"]  # not every server counts tokens
    words = [*pairs, *server.words, "describe.timeout=0.5", "describe.concurrency=1", "describe.price=[2, 10]"]
    output = describe(*words)
    assert "6 paragraphs written" in output and len(server.requests) == 6 + len(trouble)
    tokens = 5 + ("empty" in trouble)
    assert f"{70 * tokens} tokens in, {8 * tokens} out, cost {70 * tokens * 2e-6 + 8 * tokens * 1e-5:.4f}" in output
    path, key, body = server.requests[-1]
    assert path == "/v1/chat/completions" and key == "Bearer sk-very-secret" and body["model"] == "some-model"
    parts = {part["type"]: part for part in body["messages"][0]["content"]}
    assert parts["image_url"]["image_url"]["url"].startswith("data:image/png;base64,")
    assert "very-secret" not in output + "".join(path.read_text() for path in texts.rglob("*.*"))


def test_a_failed_description_leaves_the_old_one_whole(pairs, tmp_path, texts, server):
    describe(*pairs, *server.words)
    old = contents(texts)
    change_image(tmp_path)
    server.script = [500, 500]
    output = describe(*pairs, *server.words, "describe.retries=1", code=1)
    assert "VI/a2.png: no paragraph" in output and "status 500" in output and "5 were up to date, 1 failed" in output
    assert contents(texts) == old


def test_a_refusal_ends_the_run_and_earlier_answers_are_kept(pairs, texts, server):
    server.script = ["well"] * 2 + [401] * 9
    output = describe(*pairs, *server.words, "describe.concurrency=1", code=1)
    assert "refuses the key" in output and len(list(texts.rglob("*.txt"))) == 2
    assert len(server.requests) < 6  # one for each image


@pytest.mark.parametrize(
    "status, more, words",
    [
        (404, [], "knows no model 'some-model'"),
        ("leak", [], "gave no answer (status 400 xxx"),
        (None, ["describe.url=http://127.0.0.1:9/v1"], "http://127.0.0.1:9/v1 cannot be reached"),
        (None, ["describe.url=http://me:very-secret@localhost/v1"], "without a user or password"),
        (None, ["describe.key=NO_SUCH_KEY"], "NO_SUCH_KEY (describe.key) is not set"),
        (None, ["describe.template=none.txt"], "cannot use the template none.txt"),
        (None, ["describe.template=configs/datasets.yaml"], "plain braces are written {{ and }}"),
        (None, ["describe.template=configs/prompt_parts.txt"], "its fields are {modality}, {width}, {height}, and"),
        (None, ["describe.way=parts", "describe.caption=tests"], "the model 'tests' cannot be loaded"),
    ],
)
def test_mistakes_get_one_sentence(pairs, server, status, more, words):
    server.script = [status] * 99 if status else []
    output = describe(*pairs, *server.words, *more, code=1)
    assert words in output and "Traceback" not in output and "sk-" not in output and "very" not in output
    assert len(server.requests) <= 8  # no hammering on


def test_killed_between_json_and_text_the_text_is_written_again(seeing, texts, monkeypatch, loaded):
    describe(*seeing)
    plain = paragraphs.write_file
    with monkeypatch.context() as patch:
        patch.setattr(paragraphs, "write_file", lambda path, text: path.suffix == ".txt" or plain(path, text))
        describe(*seeing, "describe.modality={IR: thermal}")
    loaded.clear()
    output = describe(*seeing, "describe.modality={IR: thermal}")
    assert "0 paragraphs written, 6 were up to date" in output and "by somebody" not in output and not loaded
    assert len(list(texts.rglob("*.txt"))) == 6
