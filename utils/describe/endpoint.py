"""Chat completions from an OpenAI-compatible server. Errors that may pass are tried again; the key is never printed."""

import os
import re
import time

from huggingface_hub import InferenceClient

from utils.errors import InputError

BACKOFF = 0.5  # seconds before the second try; each later wait is twice as long


class Refused(InputError):
    """The server refuses the key or the model, or cannot be reached: every further question would fail, too."""


class NoAnswer(Exception):
    """The server did not answer one question."""


class Endpoint:
    """A chat model behind a URL.

    Args:
        url: base of the API, e.g. https://api.openai.com/v1.
        model: name of the model at that URL.
        key: environment variable that holds the key; its value may be empty if the server needs none.
        timeout: seconds to wait for an answer.
        retries: further tries after status 429 or 5xx, a dropped connection, a timeout or an empty answer.
        max_tokens: greatest length of an answer.

    Raises:
        InputError: the URL is malformed or holds a password, or the variable is not set.
    """

    def __init__(self, url: str, model: str, key: str, timeout: float, retries: int, max_tokens: int):
        if not re.fullmatch(r"https?://[^/@]+(/.*)?", url):
            raise InputError("describe.url must be like https://api.openai.com/v1, without a user or password")
        if key not in os.environ:
            raise InputError(f"the environment variable {key} (describe.key) is not set; export {key}=<key of {url}>")
        self.url, self.model, self.key, self.retries, self.max_tokens = url, model, key, retries, max_tokens
        self.secret = os.environ[key].strip() or "none"
        self.client = InferenceClient(base_url=url, api_key=self.secret, timeout=timeout)
        self.usages = []  # what the server counted for each answer, or None

    def ask(self, content: str | list[dict]) -> str:
        """The answer to one message, never empty. Several threads may call it.

        Args:
            content: a text, or a list of message parts as the API defines them (text, image_url).

        Raises:
            Refused: the key or the model is wrong, or the server cannot be reached.
            NoAnswer: this question got no answer.
        """
        message = {"role": "user", "content": content}
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(BACKOFF * 2 ** (attempt - 1))
            reason, response = "an empty answer", None
            try:
                answer = self.client.chat_completion([message], model=self.model, max_tokens=self.max_tokens)
                self.usages.append(answer.usage)
                text = (answer.choices[0].message.content or "").strip()
                if text:
                    return text
            except Exception as error:  # a bad server causes errors of HTTP, of JSON and of missing fields
                reason, response = type(error).__name__, getattr(error, "response", None)
            if response is not None:
                status, body = response.status_code, response.text.replace(self.secret, "***")
                if status in (401, 403):
                    raise Refused(f"{self.url} refuses the key in {self.key} ({status}); check describe.key")
                if status == 404:
                    raise Refused(f"{self.url} knows no model '{self.model}'; check describe.chat and describe.url")
                reason = f"status {status} {' '.join(body.split())[:200]}".strip()
                if status != 429 and status < 500:
                    break
        if reason == "ConnectError":
            raise Refused(f"{self.url} cannot be reached; check describe.url")
        raise NoAnswer(f"{self.url} gave no answer ({reason})")

    def tokens(self) -> tuple[int, int]:
        """Tokens in and out of all answers so far, as the server counts them; not every server does."""
        counted = [usage for usage in self.usages if usage]
        return sum(usage.prompt_tokens for usage in counted), sum(usage.completion_tokens for usage in counted)
