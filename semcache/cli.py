"""The command line. Every command says what it did, exits non-zero on failure, and says then what to do.

Exit status: 0 done, 1 could not (port taken, store or model unusable), 2 a setting or an argument is wrong.
Imports are inside the commands, so that `--help` and `check` do not wait for FAISS.
"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from typing import Any

import click

from semcache import __version__, config
from semcache.commands.audit import audit
from semcache.commands.backends import backends
from semcache.commands.check import check
from semcache.commands.entries import export, import_, purge
from semcache.commands.explain import explain
from semcache.commands.keys import keys
from semcache.commands.shadow import shadow
from semcache.commands.shared import examples, load, speaks_plainly, with_config
from semcache.commands.tune import tune
from semcache.commands.usage import usage


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="semcache")
def main() -> None:
    """A semantic caching reverse proxy for LLM APIs: point a service's base URL at it and change nothing else."""


@main.command(
    epilog=examples(
        "semcache serve --upstream http://127.0.0.1:8000/v1",
        "semcache serve -c config/semcache.yaml --port 9000",
        "semcache serve --threshold 0.93 --store sqlite:/var/lib/semcache/cache.db",
    )
)
@with_config
@click.option("--host", help="Address to listen on.")
@click.option("--port", type=int, help="Port to listen on; 0 takes a free one.")
@click.option("--admin-port", type=int, help="Port of metrics and admin calls; 0 takes a free one.")
@click.option("--upstream", metavar="URL", help="Where misses go, with /v1: replaces the pools of the file.")
@click.option("--store", metavar="URL", help="sqlite:PATH or memory:")
@click.option("--threshold", type=float, help="Least cosine of a semantic hit, 0 to 1.")
@click.option("--workers", type=int, help="Processes that share the port.")
@speaks_plainly
def serve(file: Path | None, **options: Any) -> None:
    """Run the proxy until SIGTERM or Ctrl-C; running streams get `server.drain` to finish."""
    # Until it serves: what it would read again it is about to read anyhow, and by default the signal would end it.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    from semcache.advice import advise
    from semcache.running import run

    settings = load(file, options)
    for line in advise(settings):
        click.echo(f"semcache: note: {line}", err=True)
    if settings.embedder.engine == "onnx":  # the first start makes the model; every later one finds it
        from semcache.cache.model import prepare as prepare_model

        prepare_model(settings.embedder.model, progress=lambda line: click.echo(f"semcache: {line}", err=True))
    run(settings, (lambda: load(file, options)) if file is not None else None, file)


@main.command(epilog=examples("semcache demo", "semcache demo --exit"))
@click.option("--exit", "leave", is_flag=True, help="Stop after the summary instead of staying up.")
@click.option("--port", type=int, default=8080, show_default=True, help="Port of the proxy.")
@speaks_plainly
def demo(leave: bool, port: int) -> None:
    """Ask a simulated backend some hundred questions through the proxy, and watch the verdicts."""
    from semcache.demo.play import run

    sys.exit(run(leave=leave, port=port))


@main.command(
    epilog=examples(
        "semcache simulate --port 8000 --ttft 300ms --rate 60",
        "semcache simulate --kv-cache 200000 --prefill 8000 --slots 16 --decode 800",
    )
)
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=int, default=8000, show_default=True, help="0 takes a free one.")
@click.option("--ttft", default="300ms", show_default=True, help="Time to the first token.")
@click.option("--rate", type=float, default=60, show_default=True, help="Tokens per second.")
@click.option(
    "--model", "models", multiple=True, help="A model that it has; repeatable. Without: any that is asked for."
)
@click.option("--name", default="fp_simulated", help="Told as system_fingerprint: which of several servers answered.")
@click.option(
    "--kv-cache", type=click.IntRange(0), default=0, help="Room of its KV cache in tokens; 0: nothing is kept."
)
@click.option(
    "--prefill", type=click.IntRange(0), default=0, help="Tokens of prompts that it reads per second; 0: at once."
)
@click.option("--slots", type=click.IntRange(0), default=0, help="Requests at once, more wait; 0: no limit.")
@click.option("--decode", type=click.IntRange(0), default=0, help="Tokens per second, of all requests; 0: no limit.")
@click.option("--fail-rate", type=click.FloatRange(0, 1), default=0.0, help="Share of requests that get a 500.")
@click.option(
    "--die-after", type=click.IntRange(0), default=0, help="It is gone at the request after so many; 0: never."
)
@click.option("--requests-per-minute", type=click.IntRange(0), default=0, help="Of each key, then 429; 0: no limit.")
@speaks_plainly
def simulate(
    host: str,
    port: int,
    ttft: str,
    rate: float,
    models: tuple[str, ...],
    name: str,
    kv_cache: int,
    prefill: int,
    slots: int,
    decode: int,
    fail_rate: float,
    die_after: int,
    requests_per_minute: int,
) -> None:
    """Run a simulated model server with the wire forms of real ones, for demos, tests and load tests.

    It speaks OpenAI's API (chat completions, completions, responses, embeddings), on Azure's paths too, Anthropic's
    messages and Ollama's own API. Requests with the header X-Simulate get what it names: an error, a cut, a pace;
    semcache/simulate/server.py lists them. GET /simulate/stats counts what was asked, GET /health and GET /metrics
    answer as vLLM's do.

    With --kv-cache, --prefill, --slots or --decode the first token comes after a wait for a slot and the reading of
    what the KV cache does not hold; --rate then is the most that one request gets of --decode.
    """
    from semcache.simulate.gpu import Gpu
    from semcache.simulate.limits import RateLimit
    from semcache.simulate.server import Simulator, run

    is_gpu = kv_cache or prefill or slots or decode
    simulator = Simulator(
        ttft_s=config.read_duration(ttft, "--ttft"),
        tokens_per_s=rate,
        models=models or None,
        fingerprint=name,
        gpu=Gpu(kv_tokens=kv_cache, prefill_rate=prefill, slots=slots, decode_rate=decode) if is_gpu else None,
        limit=RateLimit(requests_per_minute, time.monotonic) if requests_per_minute else None,
        fail_rate=fail_rate,
        die_after=die_after,
    )
    run(simulator, host=host, port=port)


@main.group()
def model() -> None:
    """Embedding models, and rerankers."""


@model.command(
    epilog=examples(
        "semcache model prepare all-MiniLM-L6-v2",
        "semcache model prepare --reranker cross-encoder/quora-distilroberta-base",
    )
)
@click.argument("name", default="all-MiniLM-L6-v2")
@click.option("--reranker", "is_reranker", is_flag=True, help="It is a cross-encoder, for match.reranker.")
@speaks_plainly
def prepare(name: str, is_reranker: bool) -> None:
    """Check a model's weights and make its int8 ONNX file, once; serving then needs no torch."""
    from semcache.cache import reranker_engines
    from semcache.cache.model import prepare as prepare_model

    prepared = (reranker_engines.prepare if is_reranker else prepare_model)(name, progress=click.echo)
    click.echo(f"{name}: ready in {prepared.folder}")


for command in (check, explain, shadow, tune, usage, audit, keys, backends, purge, export, import_):
    main.add_command(command)
