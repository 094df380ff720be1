"""Chat completions from an OpenAI-compatible server. Errors that may pass are tried again; the key is never printed."""

import base64
import io
import os
import re
import time

from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image

from utils.config import Describe
from utils.errors import InputError

BACKOFF = 0.5  # seconds before the second try; each later wait is twice as long


class Refused(InputError):
    """The server refuses the key or the model, or cannot be reached: every further question would fail, too."""


class Endpoint:
    """A chat model behind `config.url`, as `LocalChat`, for several threads; InputError for a wrong URL or no key."""

    def __init__(self, config: Describe):
        self.config, self.usages = config, []  # what the server counted for each answer, or None
        if not re.fullmatch(r"https?://[^/@]+(/.*)?", config.url):
            raise InputError("describe.url must be like https://api.openai.com/v1, without a user or password")
        if config.key not in os.environ:
            raise InputError(
                f"the environment variable {config.key} (describe.key) is not set; export "
                f"{config.key}=<key of {config.url}>"
            )
        self.secret = os.environ[config.key].strip() or "none"  # some servers need no key
        self.client = InferenceClient(base_url=config.url, api_key=self.secret, timeout=config.timeout)

    def __call__(self, images: list[Image.Image], prompts: list[str]) -> list[str]:
        """N images of any size and their N prompts -> N texts; raises as `ask`."""
        return [self.ask(image, prompt) for image, prompt in zip(images, prompts)]

    def ask(self, image: Image.Image, prompt: str) -> str:
        """The answer to a prompt, with the image if describe.way says so; never empty.

        Refused if every further question would fail, too; RuntimeError if this one got no answer.
        """
        url, content = self.config.url, prompt
        if self.config.way == "image":
            png = io.BytesIO()
            image.save(png, "PNG")
            data = "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()
            content = [{"type": "text", "text": prompt}, {"type": "image_url", "image_url": {"url": data}}]
        question = {"messages": [{"role": "user", "content": content}], "model": self.config.chat}
        for attempt in range(self.config.retries + 1):
            time.sleep(BACKOFF * 2 ** (attempt - 1) if attempt else 0)
            try:
                answer = self.client.chat_completion(**question, max_tokens=self.config.max_tokens)
                self.usages.append(answer.usage)
                if text := (answer.choices[0].message.content or "").strip():
                    return text
                reason = "an empty answer"
            except HfHubHTTPError as error:
                status = error.response.status_code
                if status in (401, 403):
                    raise Refused(
                        f"{url} refuses the key in {self.config.key} ({status}); check describe.key"
                    ) from None
                if status == 404:
                    raise Refused(
                        f"{url} knows no model '{self.config.chat}'; check describe.chat and describe.url"
                    ) from None
                body = error.response.text.replace(self.secret, "***")
                reason = f"status {status} {' '.join(body.split())[:200]}"
                if status != 429 and status < 500:
                    break
            except Exception as error:  # a bad server causes errors of connections, of JSON and of missing fields
                reason = type(error).__name__
        if reason == "ConnectError":
            raise Refused(f"{url} cannot be reached; check describe.url")
        raise RuntimeError(f"{url} gave no answer ({reason})")

    def cost(self) -> str:
        """The tokens of all answers so far, as far as the server counts them, and what they cost."""
        counted = [usage for usage in self.usages if usage]
        tokens = sum(usage.prompt_tokens for usage in counted), sum(usage.completion_tokens for usage in counted)
        cost = sum(count * price / 1e6 for count, price in zip(tokens, self.config.price))
        return "{}: {} tokens in, {} out, cost {:.4f} by describe.price".format(self.config.url, *tokens, cost)
