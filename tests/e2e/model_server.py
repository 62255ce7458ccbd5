"""The proxy before a real model server: `transformers serve` with a tiny Llama whose weights are random.

The model, its tokenizer and its chat template are made on the spot, and nothing is downloaded. It samples, so two
answers to one question are equal only when one was stored; and many of its tokens end an answer, so that it comes to an
end by itself.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from semcache.children import Child
from tests.e2e import catalog, rig
from tests.e2e.upstream import Call

MODEL = "tiny-llama"
VOCABULARY = 512
ENDING = 12  # every so many tokens one ends the answer
LEAST = 16  # tokens before one may
RUNNING = r"running on (http://[0-9.:]+)"  # what the server prints once it listens

TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_ROLES = ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]

# What of the list of features a server of random words can be asked; the APIs are those it has.
_APIS = ("chat", "responses", "completions")
FEATURES = ("json", "stream", "stream_after_json", "json_after_stream", "no_store")


def make_model(folder: Path) -> None:
    """Write configuration, weights, tokenizer and template, as any model on the hub has them."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=_ROLES,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([(Path(__file__).parent / "README.md").read_text(encoding="utf-8")], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)

    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    ending = [fast.eos_token_id, *range(len(_ROLES), len(fast), ENDING)]
    model.generation_config = GenerationConfig(
        do_sample=True, min_new_tokens=LEAST, eos_token_id=ending, pad_token_id=fast.pad_token_id
    )
    model.save_pretrained(folder)


def command(folder: Path, packages: Path, port: int = 0, threads: int = 0) -> list[str]:
    """What serves the model that is in `folder`. `packages`: what it needs more. `threads` 0: its own choice."""
    path = f"{packages}:{os.environ['PYTHONPATH']}" if os.environ.get("PYTHONPATH") else str(packages)
    settings = [f"PYTHONPATH={path}", "HF_HUB_OFFLINE=1", "TRANSFORMERS_OFFLINE=1"]
    settings += [f"OMP_NUM_THREADS={threads}"] if threads else []
    serve = [sys.executable, "-m", "transformers.cli.transformers", "serve", MODEL]
    return ["env", "-C", str(folder), *settings, *serve, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]


async def run(client: catalog.Client, packages: Path) -> rig.Result:
    """Serve the model, ask it through the proxy with the openai SDK, and judge. `packages`: what the server needs more.

    Raises RuntimeError or StartError when a program breaks.
    """
    with tempfile.TemporaryDirectory(prefix="semcache-e2e-") as name:
        folder = Path(name)
        await asyncio.to_thread(make_model, folder / MODEL)
        server = Child(command(folder, packages), folder / "server.log")
        try:
            found = await asyncio.to_thread(server.wait_for_line, RUNNING)
            async with rig.running_proxy(folder, found[1], stream_done=False) as proxy:
                program = [
                    "env",
                    f"SEMCACHE_E2E_MODEL={MODEL}",
                    sys.executable,
                    str(rig.HERE / "clients" / client.program),
                    *_APIS,
                ]
                asked = {"talk": {name: catalog.FEATURES["talk"][name] for name in FEATURES}, "embeddings": {}}
                lines = await rig.output(client, program, proxy, found[1], asked)
            result = rig.read(client, lines, _forwarded)
            result.rows = {("server", api): row for (_, api), row in result.rows.items()}
            result.modes = {("server", api): modes for (_, api), modes in result.modes.items()}
            _compare(result, lines, (folder / "server.log").read_text(errors="replace"))
            return result
        finally:
            await asyncio.to_thread(server.stop)


def _forwarded(said: Mapping[str, Any], texts: Sequence[str]) -> list[Call]:
    """The calls that the replies themselves say were forwarded; whether that is true is told by `_compare`."""
    told = [one.get("cache", "") for one in said["saw"]]
    return [Call("", said["api"], said["key"], tuple(texts), {}) for cache in told if "fwd-status=" in cache]


def _compare(result: rig.Result, lines: Sequence[Mapping[str, Any]], log: str) -> None:
    """The server's own log has one line for each request that reached it."""
    for (section, api), row in result.rows.items():
        told = sum(len(_forwarded(said, ())) for said in lines if said.get("api") == api)
        path = {"chat": "chat/completions"}.get(api, api)
        seen = len(re.findall(rf'"POST /v1/{path} HTTP/1.1" 200', log))
        if seen != told:
            row["json"] = (
                row["json"]
                or f"{told} requests were told to be forwarded, and the server of {section} {api} saw {seen}"
            )
