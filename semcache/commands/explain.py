"""`semcache explain`: why a question would be a hit or none, asked of a running server."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlencode

import click

from semcache.commands.shared import admin_url, ask_server, examples, fail, load, screen, speaks_plainly, with_config


@click.command(
    epilog=examples(
        "semcache explain 'How do I return a jacket?' --model gpt-4o --tenant shop",
        "semcache explain 'What is my balance?' --user ann --json",
        "semcache explain --body request.json --path /v1/messages --key -",
        "semcache explain --request 5f0c9a31c2a4d0ee0000002a",
    )
)
@click.argument("question", required=False)
@with_config
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
    from semcache.commands.explain_screen import show, show_outcomes

    settings = load(file, {})
    fields = _explain_fields(**asked)
    if bool(fields) == bool(request_id):
        raise click.UsageError("say what to explain: a QUESTION, --body FILE, or --request ID alone")
    if request_id:
        path, body = f"/semcache/explain?{urlencode({'request': request_id})}", None
    else:
        path, body = "/semcache/explain", json.dumps(fields).encode()
    answer = asyncio.run(ask_server(settings, path, body, admin))
    console = screen()
    if answer is None:
        fail(f"no server listens on {admin_url(settings, admin)}: start it, or name it with --admin", 1)
    if as_json:
        click.echo(json.dumps(json.loads(answer), ensure_ascii=False, indent=2))
    elif request_id:
        show_outcomes(json.loads(answer), console)
    else:
        show(json.loads(answer), console)


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
