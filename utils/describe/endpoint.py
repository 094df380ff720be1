"""Chat completions from an OpenAI-compatible server. Errors that may pass are tried again; the key is never printed."""

import os
import random
import threading
import time

from utils.errors import InputError

BACKOFF = 0.5  # seconds before the second try; each later wait is twice as long
UNREACHABLE = ("ConnectError", "ConnectTimeout", "ConnectionError")  # errors of the HTTP libraries in use


class NoAnswer(Exception):
    """A question got no usable answer, however often it was asked."""


class Endpoint:
    """A chat model behind a URL.

    Args:
        url: base of the API, e.g. https://api.openai.com/v1.
        model: name of the model at that URL.
        key: environment variable that holds the key; its value may be empty if the server needs none.
        timeout: seconds to wait for an answer.
        retries: further tries after status 429 or 5xx, a dropped connection, a timeout or an answer without text.
        max_tokens: greatest length of an answer.

    Attributes:
        tokens: [in, out], summed over all answers, as the server counts them.

    Raises:
        InputError: the URL is malformed or holds a password, or the variable is not set.
    """

    def __init__(self, url: str, model: str, key: str, timeout: float, retries: int, max_tokens: int):
        from huggingface_hub import InferenceClient

        if not url.startswith(("http://", "https://")):
            raise InputError(f"describe.url={url} is no address; it is like https://api.openai.com/v1")
        if "@" in url.split("/")[2]:
            raise InputError(
                "describe.url holds a password; give it in the environment variable that describe.key names"
            )
        if key not in os.environ:
            raise InputError(f"the environment variable {key} (describe.key) is not set; export {key}=<key of {url}>")
        secret = os.environ[key].strip() or "none"
        self.url, self.model, self.key = url, model, key
        self.retries, self.max_tokens, self.tokens = retries, max_tokens, [0, 0]
        self._client = InferenceClient(base_url=url, api_key=secret, timeout=timeout)
        self._secret, self._reached = secret, False
        self._lock = threading.Lock()

    def ask(self, content: str | list[dict]) -> str:
        """The answer to one message, never empty. It may be called from several threads.

        Args:
            content: a text, or a list of message parts as the API defines them (text, image_url).

        Raises:
            InputError: the key or the model is refused, or the server cannot be reached: all questions would fail.
            NoAnswer: this question got no answer.
        """
        for attempt in range(self.retries + 1):
            wait = BACKOFF * 2**attempt * random.uniform(1, 1.5)
            try:
                answer = self._client.chat_completion(
                    [{"role": "user", "content": content}], model=self.model, max_tokens=self.max_tokens
                )
                text = (answer.choices[0].message.content or "").strip()
                with self._lock:  # several threads ask; not every server counts tokens
                    for i, name in enumerate(("prompt_tokens", "completion_tokens")):
                        self.tokens[i] += getattr(getattr(answer, "usage", None), name, None) or 0
                    self._reached = True
                if text:
                    return text
                reason = "an empty answer"
            except Exception as error:  # a bad server can cause errors of HTTP, of JSON and of missing fields
                response = getattr(error, "response", None)
                status = getattr(response, "status_code", None)
                if status in (401, 403):
                    raise InputError(
                        f"{self.url} refuses the key in {self.key} ({status}); check describe.key"
                    ) from None
                if status == 404:
                    raise InputError(
                        f"{self.url} knows no model '{self.model}', or is no OpenAI-compatible endpoint; "
                        "check describe.chat and describe.url"
                    ) from None
                self._reached |= status is not None
                body = " ".join(response.text.replace(self._secret, "***").split())[:200] if status else ""
                reason = f"status {status} {body}".strip() if status else type(error).__name__
                if status and status != 429 and status < 500:
                    break
                after = response.headers.get("retry-after", "") if status else ""
                wait = max(wait, min(float(after), 60) if after.isdecimal() else 0)
            if attempt < self.retries:
                time.sleep(wait)
        if not self._reached and reason in UNREACHABLE:
            raise InputError(f"{self.url} cannot be reached ({reason}); check describe.url")
        raise NoAnswer(f"{self.url} gave no answer ({reason})")
