"""Probes -> log-probabilities of candidates, from a server with OpenAI's completions API.

- ``echo``: the server returns the log-probability of every token of a prompt. Each prompt is sent alone and with each
  of its candidates, whose tokens are those after the prompt's (the rule of ``data.tokenize``; text offsets are not
  reliable, because some servers count BOS and dropped spaces in them). All scorings are exact.
- ``top``: the server returns only the most probable next tokens. First tokens are scored. A candidate that is not among
  them is less probable than all of them; if several are not, they tie, and their exact ranks are unknown.

Answers are saved to a file as they arrive, so that an interrupted scoring repeats no request.
"""

import json
import math
import os
import socket
import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from ocr_eval.common.errors import RunFailed, UserError, one_line, reason_of
from ocr_eval.common.files import read_bytes, read_jsonl, refuse_irregular, to_jsonl, whole, write_atomic
from ocr_eval.common.messages import progress_bar, say, warn
from ocr_eval.data.task import Probe, Task
from ocr_eval.data.tokenize import check_first_tokens
from ocr_eval.scoring.candidates import CandidateScores, collected
from ocr_eval.scoring.quantities import inexact
from ocr_eval.specs.model import ServedWeights

#: Environment variables that may have the key, which is sent to the server and nowhere else.
KEYS = ("OCR_EVAL_API_KEY", "OPENAI_API_KEY")
#: Seconds before a failed request is repeated; doubled each time.
PAUSE = 1.0
_TRIES = 7
_PATIENCE = 600.0
#: Options of a request, best first; some servers do not echo, and 20 and 5 top tokens are the limits of others.
_WAYS: tuple[dict[str, Any], ...] = ({"echo": True, "logprobs": 1}, {"logprobs": 20}, {"logprobs": 5})
#: Difference between two log-probabilities of the same token, in nats, that rounding cannot explain.
_APART = 0.5
#: How far below the last of the top tokens all other candidates are placed, in nats.
_BELOW = 1e-4


class _Refused(Exception):
    """The server rejected the request; the message says why."""


class _Again(Exception):
    """A failure that may be temporary: try again after at least ``wait`` seconds."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


@dataclass(frozen=True)
class Cost:
    """What a server is sent for one scoring."""

    texts: int
    requests: int
    tokens: int

    def __str__(self) -> str:
        return f"{self.texts:,} texts in {self.requests:,} requests, about {self.tokens:,} prompt tokens"


def cost(texts: Sequence[str], per_request: int, characters: float = 4.0) -> Cost:
    """The cost of sending these texts, at ``characters`` per token."""
    return Cost(len(texts), -(-len(texts) // per_request), round(sum(map(len, texts)) / characters))


def texts_of(probes: Sequence[Probe], echo: bool = True) -> list[str]:
    """The texts to send: each prompt alone and, if the server echoes, with each of its candidates."""
    texts = [[p.prompt, *(f"{p.prompt} {c}" for c in p.candidates if echo)] for p in probes]
    return list(dict.fromkeys(text for of_probe in texts for text in of_probe))


def score_served(server: ServedWeights, task: Task, per_request: int, kept: Path | None = None) -> CandidateScores:
    """Score every candidate of every probe. ``kept`` is the file for answers, in an existing folder.

    Raises:
        UserError: no such server or model, a rejected key, no log-probabilities, or equal first tokens.
        RunFailed: the server failed repeatedly; answers so far are kept.
    """
    client = _Client(server)
    way = client.choose_way(task.probes[0].prompt, task.probes[0].candidates[0])
    texts = texts_of(task.probes, "echo" in way)
    found = _read(kept, way)
    todo = [text for text in texts if text not in found]
    rest = f"; {len(found):,} answered before" * bool(found)
    say(f"{server.url}: {cost(todo, per_request, client.characters)}{rest}")
    with progress_bar(len(todo), "asking") as bar:
        for start in range(0, len(todo), per_request):
            batch = todo[start : start + per_request]
            try:
                answers = dict(zip(batch, client.ask(batch, way), strict=True))
            except _Refused as error:
                raise UserError(f"{server.url} refuses to answer: {error}.") from error
            except RunFailed as error:
                rest = f" {len(found):,} of {len(texts):,} answers are kept: the same command resumes." * bool(kept)
                raise RunFailed(f"{error}{rest}") from error
            if None in answers.values():
                raise UserError(f"{server.url} gives log-probabilities for only some of the texts. Update the server.")
            found |= answers
            if kept is not None:
                _add(kept, way, answers)
            bar.update(len(batch))
    return _from_echo(task, found) if "echo" in way else _from_top(task, found, way["logprobs"])


def _read(kept: Path | None, way: Mapping[str, Any]) -> dict[str, Any]:
    """Saved answers to requests with the same options; an incomplete last line is dropped."""
    if kept is None or not kept.exists():
        return {}
    refuse_irregular(kept)
    content = read_bytes(kept)
    write_atomic(kept, content[: content.rfind(b"\n") + 1])
    with whole(kept):
        return {line["text"]: line["answer"] for line in read_jsonl(kept) if line["way"] == way}


def _add(kept: Path, way: Mapping[str, Any], answers: Mapping[str, Any]) -> None:
    with kept.open("ab") as file:
        file.write(to_jsonl([{"way": way, "text": text, "answer": each} for text, each in answers.items()]).encode())
        file.flush()
        os.fsync(file.fileno())


def _from_echo(task: Task, found: Mapping[str, Any]) -> CandidateScores:
    """Scores from the tokens and log-probabilities of each text."""
    logprobs_of, begin_alike, checked = [], [], set()
    for probe in task.probes:
        prompt, names, values = found[probe.prompt][0], [], []
        for candidate in probe.candidates:
            tokens, logprobs = found[f"{probe.prompt} {candidate}"]
            if tokens[: len(prompt)] != prompt or len(tokens) == len(prompt):
                raise UserError(
                    f"The server's tokenizer does not split '{probe.prompt} {candidate}' between prompt and answer. "
                    "Reword the template to have a plain word before the answer."
                )
            names.append(tuple(tokens[len(prompt) :]))
            values.append(logprobs[len(prompt) :])
        if not task.whole_answers and tuple(names) not in checked:
            check_first_tokens(probe, names)
            checked.add(tuple(names))
        logprobs_of.append(values)
        begin_alike.append(len({tokens[0] for tokens in names}) < len(names))
    return collected(logprobs_of, begin_alike)


def _from_top(task: Task, found: Mapping[str, Any], most: int) -> CandidateScores:
    """Scores from the most probable tokens after each prompt."""
    widest = max(len(probe.candidates) for probe in task.probes)
    logprobs_PC = np.full((len(task.probes), widest), -np.inf)
    exact_PC = np.ones(logprobs_PC.shape, dtype=bool)
    for i, probe in enumerate(task.probes):
        top, words = found[probe.prompt], [f" {candidate}" for candidate in probe.candidates]
        begins = [token for token in top if token and sum(word.startswith(token) for word in words) == 1]
        own = [max((token for token in begins if word.startswith(token)), key=len, default=None) for word in words]
        beyond = [token is None for token in own]
        logprobs_PC[i, : len(own)] = [min(top.values()) - _BELOW if t is None else top[t] for t in own]
        # A token that is only part of a word may not be the one with which this model begins the word.
        sure = all(token in (None, word) for token, word in zip(own, words, strict=True))
        exact_PC[i, : len(own)] = [sure and (sum(beyond) < 2 or not each) for each in beyond]
    scores = CandidateScores({"first-token": logprobs_PC}, exact_PC)
    warn(
        f"The server gives no log-probabilities of prompts, only the {most} most probable next tokens. There are only "
        f"first-token scores; ranks of {inexact(task.probes, scores):,} of {len(task.probes):,} probes are not exact"
    )
    return scores


class _Client:
    """A server, and what its answers have shown about it."""

    def __init__(self, server: ServedWeights) -> None:
        self._server = server
        name = next((name for name in KEYS if os.environ.get(name)), KEYS[0])
        self._key = os.environ.get(name, "").strip()
        if not (self._key.isascii() and self._key.isprintable()):
            raise UserError(f"{name} has characters that a key cannot have. Set it again.")
        self._has_answered = False
        self.characters = 4.0  # per token

    def choose_way(self, prompt: str, answer: str) -> dict[str, Any]:
        """The first options with which the server gives log-probabilities. Raises UserError if there are none."""
        said = ""
        for way in _WAYS:
            try:
                if self.ask([f"{prompt} {answer}"], way) == [None]:
                    continue
                if "echo" not in way or self._echoes_truly(prompt, way):
                    return way
            except _Refused as error:
                said = f" It says: {error}"
            else:
                warn(f"{self._server.url} echoes log-probabilities that differ from its own of next tokens; not used")
        raise UserError(
            f"{self._server.url} gives no log-probabilities of '{self._server.name}'. Use a server whose completions "
            f"support 'logprobs', ideally with 'echo', such as vLLM.{said}"
        )

    def _echoes_truly(self, prompt: str, way: Mapping[str, Any]) -> bool:
        """Whether a token has the same log-probability when echoed as when generated.

        llama-cpp-python 0.3.36 echoes that of the following token if the model has no BOS.
        """
        (top,) = self.ask([prompt], {"logprobs": 5})
        (alone,) = self.ask([prompt], way)
        for token, logprob in (top or {}).items():
            (echoed,) = self.ask([prompt + token], way)
            if alone and echoed and echoed[0] == [*alone[0], token]:
                return abs(echoed[1][-1] - logprob) < _APART
        return True  # nothing to compare

    def ask(self, texts: Sequence[str], way: Mapping[str, Any]) -> list[Any]:
        """The server's answer to each text, None where log-probabilities are missing."""
        body = {"model": self._server.name, "prompt": list(texts), "max_tokens": 1, "temperature": 0, **way}
        for attempt in range(_TRIES):
            try:
                return self._answers(self._exchange(json.dumps(body)), texts, "echo" in way)
            except _Again as trouble:
                if attempt == _TRIES - 1:
                    raise RunFailed(f"{self._server.url} failed {_TRIES} times: {trouble}.") from trouble
                wait = max(PAUSE * 2**attempt, trouble.wait)
                say(f"{self._server.url}: {trouble}; trying again in {wait:.0f} s")
                time.sleep(wait)
        raise AssertionError("the last attempt returns or raises")

    def _exchange(self, body: str) -> bytes:
        """Send one request and return the answer. Redirects are not followed, because they would receive the key."""
        where, headers = urlsplit(self._server.url), {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        kind = HTTPSConnection if where.scheme == "https" else HTTPConnection
        connection = kind(str(where.hostname), where.port, timeout=_PATIENCE)
        try:
            connection.request("POST", f"{where.path}/completions", body, headers)
            answer = connection.getresponse()
            content = answer.read()
        except (OSError, HTTPException) as error:
            reason = reason_of(error)
            if isinstance(error, ConnectionRefusedError | socket.gaierror | ssl.SSLError) and not self._has_answered:
                raise UserError(f"{self._server.url} cannot be reached ({reason}). Check --endpoint.") from error
            raise _Again(f"the connection was cut ({reason})") from error
        finally:
            connection.close()
        if answer.status == 200:
            return content
        raise self._refusal(answer.status, content, answer.getheader("Retry-After") or "")

    def _refusal(self, status: int, content: bytes, wait: str) -> Exception:
        said = _message(content).replace(self._key or "\0", "[key]")
        if status in (400, 422, 501) or "echo" in said:
            return _Refused(said)
        if status in (408, 429) or status >= 500:
            return _Again(f"it answered {status} ({said})", min(float(wait), 120.0) if wait.isdecimal() else 0.0)
        if status in (401, 403):
            return UserError(f"{self._server.url} denies access ({status}). Put its key into {KEYS[0]}.")
        return UserError(
            f"{self._server.url} has no completions of '{self._server.name}' ({status}: {said}). Give the name that it "
            "serves as --model, and the address that ends in /v1."
        )

    def _answers(self, content: bytes, texts: Sequence[str], echo: bool) -> list[Any]:
        """Parse the server's answer into what is kept for each text.

        Raises:
            UserError: another model answered, or the very first answer is not a completion.
            _Again: a later answer is not a completion.
        """
        try:
            answer = json.loads(content)
            name, choices = answer["model"], sorted(answer["choices"], key=lambda choice: choice["index"])
            found = [_echoed(*each) if echo else _top(each[0]) for each in zip(choices, texts, strict=True)]
            tokens = (answer.get("usage") or {}).get("prompt_tokens")
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            problem = f"its answer is not a completion of each text ({type(error).__name__}: {error})"
            if self._has_answered:
                raise _Again(problem) from error
            raise UserError(f"{self._server.url}: {problem}. Check --endpoint.") from error
        if name != self._server.name:
            raise UserError(
                f"{self._server.url} answers as '{name}', not as --model {self._server.name}. Correct --model."
            )
        if tokens and not self._has_answered:
            self.characters = sum(map(len, texts)) / tokens
        self._has_answered = True
        return found


def _message(content: bytes) -> str:
    """A server's error message, without the JSON around it."""
    text = content.decode(errors="replace")
    try:
        found = json.loads(text)
        found = found.get("error", found)
        text = found if isinstance(found, str) else str(found.get("message", found.get("detail", found)))
    except (ValueError, AttributeError):
        pass
    return one_line(text[:300]).rstrip(".")


def _echoed(choice: Mapping[str, Any], text: str) -> tuple[list[str], list[float | None]] | None:
    """The tokens of a text and their log-probabilities (the first has none); None if any are missing."""
    given = choice["logprobs"] or {}
    if not given.get("tokens"):
        return None
    asked = choice.get("prompt_logprobs")  # vLLM: one per token. Elsewhere, generated tokens start after the text
    count = len(asked) if asked else sum(0 <= offset < len(text) for offset in given["text_offset"])
    tokens, logprobs = given["tokens"][:count], given["token_logprobs"][:count]
    known = len(tokens) > 1 and all(value is not None and math.isfinite(value) for value in logprobs[1:])
    return (tokens, logprobs) if known else None


def _top(choice: Mapping[str, Any]) -> dict[str, float] | None:
    """The most probable next tokens, from either of the two layouts that servers use."""
    given = choice["logprobs"] or {}
    if given.get("content"):
        top = {each["token"]: each["logprob"] for each in given["content"][0]["top_logprobs"]}
    else:
        top = dict((given.get("top_logprobs") or [{}])[0])
    return top if top and all(map(math.isfinite, top.values())) else None
