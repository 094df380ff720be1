"""Chat completions of an OpenAI-compatible server, with patience and without ever showing the key."""

import os
import random
import threading
import time

from utils.errors import InputError

BACKOFF = 0.5  # seconds before the first repetition; each later one waits twice as long
UNREACHABLE = ("ConnectError", "ConnectTimeout", "ConnectionError")  # of the HTTP libraries that may be beneath


class NoAnswer(Exception):
    """A question that got no usable answer, after all repetitions."""


class Endpoint:
    """A chat model behind a URL.

    Args:
        url: base of the API, e.g. https://api.openai.com/v1.
        model: name of the model there.
        key: environment variable that holds the key; it may be empty for a server that wants none.
        timeout: seconds to wait for an answer.
        retries: repetitions after 429, 5xx, a dropped connection, a timeout or an answer without text.
        max_tokens: length of an answer at most.

    Attributes:
        tokens: [in, out], as the server counts them, over all answers.

    Raises:
        InputError: the variable is not set.
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
        """The answer to one message: a text, or a list of parts of the protocol (text, image_url).

        Raises:
            InputError: the key or the model is refused: no other question would fare better.
            NoAnswer: this question got no answer.
        """
        for attempt in range(self.retries + 1):
            wait = BACKOFF * 2**attempt * random.uniform(1, 1.5)
            try:
                answer = self._client.chat_completion(
                    [{"role": "user", "content": content}], model=self.model, max_tokens=self.max_tokens
                )
                text = (answer.choices[0].message.content or "").strip()
                with self._lock:  # not every server counts
                    for i, name in enumerate(("prompt_tokens", "completion_tokens")):
                        self.tokens[i] += getattr(getattr(answer, "usage", None), name, None) or 0
                    self._reached = True
                if text:
                    return text
                reason = "an empty answer"
            except Exception as error:  # of the HTTP library, of JSON, of a missing field: all that a bad server can do
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
                said = " ".join(response.text.replace(self._secret, "***").split())[:200] if status else ""
                reason = f"status {status} {said}".strip() if status else type(error).__name__
                if status and status != 429 and status < 500:
                    break
                after = response.headers.get("retry-after", "") if status else ""
                wait = max(wait, min(float(after), 60) if after.isdecimal() else 0)
            if attempt < self.retries:
                time.sleep(wait)
        if not self._reached and reason in UNREACHABLE:
            raise InputError(f"{self.url} cannot be reached ({reason}); check describe.url")
        raise NoAnswer(f"{self.url} gave no answer ({reason})")
