"""`make test-clients`: every client, each in its own environment, and the table of what they saw.

    python -m tests.e2e.run                      all of them; writes results.json and the README's table
    python -m tests.e2e.run openai-node -v       one, with a line for each feature

Exit status 1 when a client fails where no known gap says so, or works where one does.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import time
from importlib.metadata import version

from semcache.errors import StartError
from tests.e2e import environments, model_server, rig, table
from tests.e2e.catalog import CLIENTS, Client, find
from tests.e2e.rig import Result


def main() -> int:
    parser = argparse.ArgumentParser(description="Prove semcache by clients nobody here wrote.")
    parser.add_argument("clients", nargs="*", help=f"some of: {', '.join(client.name for client in CLIENTS)}")
    parser.add_argument("-v", "--verbose", action="store_true", help="a line for each feature")
    options = parser.parse_args()
    try:
        clients = [find(name) for name in options.clients] or list(CLIENTS)
    except LookupError as error:
        parser.error(str(error))
    results, complaints, skipped = [], [], []
    for client in clients:
        try:
            result = _run(client, options.verbose)
        except environments.Unavailable as missing:
            skipped.append(client.name)
            _say(f"{client.name}: SKIPPED: {missing}")
        except (RuntimeError, StartError, TimeoutError, subprocess.CalledProcessError) as error:
            complaints.append(f"{client.name}: {error}")
            _say(f"{client.name}: BROKEN: {error or 'out of time'}")
        else:
            results.append(result)
            complaints += result.unexpected()
    table.write_results(results)
    if not complaints:
        readme = table.README.read_text(encoding="utf-8")
        table.README.write_text(table.insert(readme, table.render(table.read_results())), encoding="utf-8")
    for complaint in complaints:
        _say(complaint)
    features = [why for result in results for row in result.rows.values() for why in row.values()]
    _say(
        f"{len(results)} clients, {sum(why is None for why in features)} of {len(features)} features work, "
        f"{len(complaints)} not as expected" + (f"; skipped: {', '.join(skipped)}" if skipped else "")
    )
    return 1 if complaints else 0


def _run(client: Client, verbose: bool) -> Result:
    def say(line: str) -> None:
        _say(f"{client.name}: {line}")

    if client.is_server:
        packages = environments.more_packages(client.environment, say)
        begun = time.monotonic()
        result = asyncio.run(model_server.run(client, packages))
        result.versions = {name: version(name) for name in client.packages}
    else:
        command = environments.command(client, say)
        begun = time.monotonic()
        result = asyncio.run(rig.run(client, command))
    for (_, api), features in result.rows.items():
        works = sum(why is None for why in features.values())
        _say(f"{client.name} {api}: {works} of {len(features)} features")
        if verbose:
            for feature, why in features.items():
                _say(f"    {feature}: {'ok' if why is None else why}")
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    _say(f"{client.name}: {time.monotonic() - begun:.1f} s ({versions})")
    return result


def _say(line: str) -> None:
    print(f"clients: {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
