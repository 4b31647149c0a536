"""A server of completions in the layouts of vLLM, of servers without its additions, and of llama.cpp, on a tiny model.

It can be told to fail: ``faults`` holds what the next exchanges do in place of an answer.
"""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

Fault = Callable[["Handler"], None]


class Served:
    """A model with what was asked of it, and how it is served.

    Attributes:
        kind: "vllm", "offsets" (echo without ``prompt_logprobs``), "late" (the same, each token with the distribution
            after it: llama-cpp-python without BOS), "top" (llama.cpp) or "openai" (the older layout).
        faults: what the next exchanges do in place of an answer.
        spoil: what is done to each answer before it is sent.
    """

    def __init__(self, folder: Path, kind: str = "vllm", name: str = "my-model") -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.network = AutoModelForCausalLM.from_pretrained(folder).eval()
        self.kind, self.name = kind, name
        self.faults: list[Fault] = []
        self.spoil: Callable[[dict[str, Any]], Any] = lambda answer: answer
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.url = ""

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        asked = [self.tokenizer(text).input_ids for text in body["prompt"]]
        choices = [self.choice(i, body["prompt"][i], ids, body) for i, ids in enumerate(asked)]
        return {
            "object": "text_completion",
            "model": self.name,
            "choices": choices[::-1],  # order is what "index" says
            "usage": {"prompt_tokens": sum(map(len, asked)), "completion_tokens": len(asked)},
        }

    @torch.no_grad()
    def choice(self, index: int, text: str, ids: list[int], body: dict[str, Any]) -> dict[str, Any]:
        logits = self.network(torch.tensor([ids])).logits[0].float()
        logprobs = logits.log_softmax(-1)
        values, best = logprobs[-1].topk(body["logprobs"])
        top = {
            self.tokenizer.decode([token]): value for token, value in zip(best.tolist(), values.tolist(), strict=True)
        }
        frame = {"index": index, "finish_reason": "length"}
        if not body.get("echo"):
            token, value = next(iter(top.items()))
            if self.kind == "top":
                listed = [{"token": name, "logprob": each} for name, each in top.items()]
                content = [{"token": token, "logprob": value, "top_logprobs": listed}]
                return {**frame, "text": token, "logprobs": {"content": content}}
            given = {"tokens": [token], "token_logprobs": [value], "top_logprobs": [top], "text_offset": [len(text)]}
            return {**frame, "text": token, "logprobs": given}
        whole = [*ids, best[0].item()]
        known = [None, *(logprobs[i, token].item() for i, token in enumerate(whole[1:]))]
        if self.kind == "offsets":  # which do not count BOS, whose text is left away
            whole, known = whole[1:], [None, *known[2:]]
        if self.kind == "late":
            whole, known = ids[1:], [None, *(logprobs[i, token].item() for i, token in enumerate(ids[1:], start=1))][1:]
            known[0] = None
        tokens = [self.tokenizer.decode([token]) for token in whole]
        offsets = [sum(map(len, tokens[:i])) for i in range(len(tokens))]
        given = {"tokens": tokens, "token_logprobs": known, "text_offset": offsets, "top_logprobs": None}
        of_prompt = [None, *({str(token): {"logprob": 0.0}} for token in ids[1:])]
        more = {"prompt_logprobs": of_prompt} if self.kind == "vllm" else {}
        return {**frame, "text": text + tokens[-1], "logprobs": given, **more}


class Handler(BaseHTTPRequestHandler):
    served: Served

    def log_message(self, *arguments: object) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.served.bodies.append(body)
        self.served.headers.append(dict(self.headers))
        if self.path != "/v1/completions":
            return self.send(404, {"detail": "Not Found"})
        if self.served.faults:
            return self.served.faults.pop(0)(self)
        if body["model"] != self.served.name:
            return self.send(404, {"error": {"message": f"The model `{body['model']}` does not exist."}})
        if body.get("echo") and self.served.kind == "top":
            return self.send(500, {"error": {"message": "Only no echo is supported"}})
        if body.get("echo") and self.served.kind == "openai":
            return self.send(400, {"error": {"message": "echo and logprobs are not supported together"}})
        if body["logprobs"] > 5 and self.served.kind == "openai":
            return self.send(400, {"error": {"message": "logprobs must be at most 5"}})
        return self.send(200, self.served.spoil(self.served.answer(body)))

    def send(self, status: int, content: Any, **headers: str) -> None:
        text = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


def failing(status: int, content: Any = None, **headers: str) -> Fault:
    """An exchange that ends with a status."""
    return lambda handler: handler.send(status, content or {"error": {"message": "not now"}}, **headers)


def cut(handler: Handler) -> None:
    """An answer that ends before its length."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"model": ')
    handler.close_connection = True


@contextmanager
def serving(served: Served) -> Iterator[Served]:
    """The server on a free port of loopback; ``served.url`` says where."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"served": served}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    served.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
