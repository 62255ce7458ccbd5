"""The command line. Every command says what it did, exits non-zero on failure, and says then what to do.

Exit status: 0 done, 1 could not (port taken, store or model unusable), 2 a setting or an argument is wrong.
Imports are inside the commands, so that `--help` and `check` do not wait for FAISS.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlencode

import click

from semcache import __version__, config
from semcache.commands.audit import audit
from semcache.commands.backends import backends
from semcache.commands.check import check
from semcache.commands.keys import keys
from semcache.commands.shared import FILE, admin_url, ask_server, examples, fail, record_act, speaks_plainly
from semcache.commands.tune import tune
from semcache.commands.usage import usage
from semcache.errors import ClientError, SemcacheError

if TYPE_CHECKING:
    from semcache.config import Config

R = TypeVar("R")


def _with_config(command: Callable[..., R]) -> Callable[..., R]:
    option = click.option("-c", "--config", "file", type=FILE, help="Configuration file; see config/reference.yaml.")
    return option(command)


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
@_with_config
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
    from semcache.advice import advise
    from semcache.running import run

    settings = _load(file, options)
    for line in advise(settings):
        click.echo(f"semcache: note: {line}", err=True)
    if settings.embedder.engine == "onnx":  # the first start makes the model; every later one finds it
        from semcache.cache.model import prepare as prepare_model

        prepare_model(settings.embedder.model, progress=lambda line: click.echo(f"semcache: {line}", err=True))
    run(settings, (lambda: _load(file, options)) if file is not None else None, file)


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


@main.command(
    epilog=examples(
        "semcache purge --text 'Where is my parcel?' --dry-run",
        "semcache purge --tenant shop --erase --yes",
        "semcache purge --all",
    )
)
@_with_config
@click.option("--all", "everything", is_flag=True, help="Everything.")
@click.option("--entry", metavar="ID", help="One entry, as named in Semcache-Entry.")
@click.option("--model", metavar="GLOB", help="Answers of these models.")
@click.option("--tenant", metavar="NAME", help="Answers of one tenant.")
@click.option("--namespace", metavar="NAME", help="Answers in one namespace.")
@click.option("--user", metavar="ID", help="Answers to one end user (the `user` field).")
@click.option("--text", metavar="QUESTION", help="Answers to one question.")
@click.option("--writer", metavar="NAME", help="Answers that one tenant brought or vouches for, whoever shares them.")
@click.option("--erase", is_flag=True, help="Leave no copy in any file either.")
@click.option("--dry-run", is_flag=True, help="Count, and change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@speaks_plainly
def purge(file: Path | None, everything: bool, erase: bool, dry_run: bool, yes: bool, **fields: str | None) -> None:
    """Remove answers: from a running server through its admin port, else from the store itself."""
    chosen = {name: value for name, value in fields.items() if value}
    if everything == bool(chosen):
        raise click.UsageError(
            "say what to purge: --all, or some of --entry --model --tenant --namespace --user --text --writer"
        )
    settings = _load(file, {})
    count = asyncio.run(_purge(settings, chosen, erase=False, dry_run=True))
    if dry_run:
        click.echo(f"{count} entries would be purged")
        return
    if not yes and not click.confirm(f"purge {count} entries?"):
        fail("nothing was purged", 1)
    count = asyncio.run(_purge(settings, chosen, erase=erase, dry_run=False))
    click.echo(f"{count} entries purged{' and erased' if erase else ''}")


@main.command(
    epilog=examples(
        "semcache explain 'How do I return a jacket?' --model gpt-4o --tenant shop",
        "semcache explain 'What is my balance?' --user ann --json",
        "semcache explain --body request.json --path /v1/messages --key -",
        "semcache explain --request 5f0c9a31c2a4d0ee0000002a",
    )
)
@click.argument("question", required=False)
@_with_config
@click.option("--model", help="The model asked; by default that of the newest answer stored.")
@click.option("--system", metavar="TEXT", help="The system prompt.")
@click.option("--user", metavar="ID", help="The end user it names (`user`): personal answers are kept for each.")
@click.option("--body", type=click.File("rb"), help="A whole request instead of a question, as it is sent; - is stdin.")
@click.option("--path", help="Where that request goes; by default /v1/chat/completions.")
@click.option("-H", "--header", "headers", multiple=True, metavar="NAME:VALUE", help="A header it is sent with.")
@click.option("--tenant", metavar="NAME", help="Whose request it is; by default whose the newest answer is.")
@click.option("--key", help="The same by an API key; - asks for it, so that no other user of this machine sees it.")
@click.option("--namespace", metavar="NAME", help="The namespace it names.")
@click.option("--request", "request_id", metavar="ID", help="Tell instead what became of a request (X-Request-Id).")
@click.option("--admin", metavar="URL", help="The server's admin address; by default the one of the configuration.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@speaks_plainly
def explain(file: Path | None, request_id: str | None, admin: str | None, as_json: bool, **asked: Any) -> None:
    """Say whether a question would be a hit, and why, or why not: asks a running server, and changes nothing.

    Exit status 0 whatever the verdict is, 1 when the server cannot be asked, 2 when it does not understand.
    """
    from rich.console import Console

    from semcache.commands.explain_screen import show, show_outcomes

    settings = _load(file, {})
    fields = _explain_fields(**asked)
    if bool(fields) == bool(request_id):
        raise click.UsageError("say what to explain: a QUESTION, --body FILE, or --request ID alone")
    if request_id:
        path, body = f"/semcache/explain?{urlencode({'request': request_id})}", None
    else:
        path, body = "/semcache/explain", json.dumps(fields).encode()
    answer = asyncio.run(ask_server(settings, path, body, admin))
    console = Console(width=None if sys.stdout.isatty() else 120)
    if answer is None:
        fail(f"no server listens on {admin_url(settings, admin)}: start it, or name it with --admin", 1)
    if as_json:
        click.echo(json.dumps(json.loads(answer), ensure_ascii=False, indent=2))
    elif request_id:
        show_outcomes(json.loads(answer), console)
    else:
        show(json.loads(answer), console)


@main.command(
    epilog=examples(
        "semcache shadow",
        "semcache shadow --route 0 --target 0.02",
        "semcache shadow --admin http://10.0.0.7:8081 --json",
    )
)
@_with_config
@click.option("--route", type=click.IntRange(0), help="Only this route, by its place in the configuration.")
@click.option(
    "--target",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="False hits among hits to allow; 0.01 is 1 %.",
)
@click.option("--admin", metavar="URL", help="The server's admin address; by default the one of the configuration.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("--html", "page", type=FILE, help="Write the report as a page, too.")
@speaks_plainly
def shadow(
    file: Path | None, route: int | None, target: float | None, admin: str | None, as_json: bool, page: Path | None
) -> None:
    """Show what each threshold would have done, from requests in shadow mode: hits, false hits, what it would save.

    Asks a running server, else reads the store itself. Routes are in shadow mode with `match: {mode: shadow}`.
    """
    from rich.console import Console

    from semcache.commands.shadow_screen import show

    settings = _load(file, {})
    report = asyncio.run(_shadow(settings, route, target, admin))
    if as_json:
        click.echo(json.dumps(report, indent=2))
        return
    console = Console(width=None if sys.stdout.isatty() else 120, record=page is not None)
    show(report, console)
    if page is not None:
        try:
            console.save_html(str(page))
        except OSError as exc:
            raise SemcacheError(f"{page}: cannot be written: {exc.strerror}") from exc


async def _shadow(settings: Config, route: int | None, target: float | None, admin: str | None) -> Any:
    from semcache.shadow import shadow_report

    asked = {name: value for name, value in (("route", route), ("target", target)) if value is not None}
    answer = await ask_server(settings, f"/shadow?{urlencode(asked)}", None, admin)
    if answer is not None:
        return json.loads(answer)
    if admin is not None:
        raise SemcacheError(f"no server listens on {admin_url(settings, admin)}: start it, or leave --admin out")
    if route is not None and route >= len(settings.routes):
        raise ClientError(f"--route: there are {len(settings.routes)} routes, the first is 0")
    report: list[Any] = []

    async def read(store: Any) -> int:
        report.append(shadow_report(await store.shadow_counts(), settings.routes, route, target))
        return 0

    await _with_store(settings, read)
    return report[0]


def _explain_fields(
    question: str | None, body: IO[bytes] | None, headers: tuple[str, ...], key: str | None, **texts: str | None
) -> dict[str, Any]:
    """What the options say, in the words of POST /semcache/explain."""
    pairs = [header.partition(":") for header in headers]
    if not all(colon for _, colon, _ in pairs):
        raise click.UsageError("write a header as NAME:VALUE")
    if key == "-":
        key = click.prompt("API key", hide_input=True, err=True)
    try:
        whole = None if body is None else body.read().decode()
    except UnicodeDecodeError as exc:
        raise click.UsageError(f"--body: not UTF-8 text: {exc.reason}") from exc
    fields = {
        **texts,
        "question": question,
        "body": whole,
        "headers": {name.strip(): value.strip() for name, _, value in pairs},
        "key": key,
    }
    return {name: value for name, value in fields.items() if value}


async def _purge(settings: Config, chosen: dict[str, str], *, erase: bool, dry_run: bool) -> int:
    from semcache.types import Selector

    answer = await ask_server(
        settings, "/purge", json.dumps({**chosen, "all": not chosen, "erase": erase, "dry_run": dry_run}).encode()
    )
    if answer is not None:
        return int(json.loads(answer)["purged"])

    async def act(store: Any) -> int:
        if not dry_run:
            told: dict[str, Any] = {name: value for name, value in chosen.items() if name != "text"}
            record_act(settings, "purge", **told, by_text="text" in chosen, erase=erase)
        return int(await store.purge(Selector(**chosen), erase=erase, dry_run=dry_run))

    return await _with_store(settings, act)


@main.command(epilog=examples("semcache export backup.jsonl", "semcache export - | gzip > backup.jsonl.gz"))
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True, path_type=Path))
@click.option("-c", "--config", "config_file", type=FILE, help="Configuration file.")
@speaks_plainly
def export(file: Path, config_file: Path | None) -> None:
    """Write every entry, vectors included, as JSON Lines; a file only you can read. `-` is standard output."""

    settings = _load(config_file, {})

    async def write(store: Any) -> int:
        count = -1  # the first line is a header
        record_act(settings, "export", file=str(file))
        with _private(file) as target:
            async for line in store.export():
                target.write(line)
                count += 1
        return count

    click.echo(f"{asyncio.run(_with_store(settings, write))} entries exported", err=True)


@main.command("import", epilog=examples("semcache import backup.jsonl"))
@click.argument("file", type=click.File("rb"), metavar="FILE")
@click.option("-c", "--config", "config_file", type=FILE, help="Configuration file.")
@speaks_plainly
def import_(file: Any, config_file: Path | None) -> None:
    """Read entries that `semcache export` wrote. Vectors come along, so nothing is embedded again."""

    settings = _load(config_file, {})

    async def read(store: Any) -> int:
        record_act(settings, "import", file=str(file.name))

        async def lines() -> Any:
            for line in file:
                yield line

        return int(await store.import_lines(lines()))

    click.echo(f"{asyncio.run(_with_store(settings, read))} entries imported", err=True)


main.add_command(check)
main.add_command(tune)
main.add_command(usage)
main.add_command(audit)
main.add_command(keys)
main.add_command(backends)


# What the commands share


def _load(file: Path | None, options: dict[str, Any]) -> Config:
    return config.load(file, options={name: value for name, value in options.items() if value is not None})


async def _with_store(settings: Config, act: Callable[[Any], Coroutine[Any, Any, int]]) -> int:
    """Open the store of the settings, act, close. A running server shares the file and follows the change."""
    from semcache.cache.store import open_store

    store = open_store(settings.cache)
    store.on_erase = lambda: asyncio.to_thread(_forget_index, settings)
    await store.open()
    try:
        return await act(store)
    finally:
        await store.close()


def _private(path: Path) -> IO[bytes]:
    """Questions and answers are for the eyes of whoever exports them. Raises SemcacheError."""
    if str(path) == "-":
        return os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    try:
        return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb")
    except OSError as exc:
        raise SemcacheError(f"{path}: cannot be written: {exc.strerror}") from exc


def _forget_index(settings: Config) -> None:
    """The saved index holds vectors of what was erased; the next start makes it anew."""
    from semcache.core import snapshot_folder

    folder = snapshot_folder(settings)
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
