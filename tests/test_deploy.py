"""What can be said of the deployment files without a container engine: structure, versions, names that must agree."""

from __future__ import annotations

import importlib.resources
import json
import re
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from semcache import config
from semcache.types import Outcome, Reason, Tier, Verdict
from tests.harness import running_proxy

ROOT = Path(__file__).parent.parent
DASHBOARD = ROOT / "config" / "grafana" / "dashboards" / "semcache.json"


def read_yaml(path: str) -> Any:
    return YAML(typ="safe", pure=True).load((ROOT / path).read_text())


COMPOSE = read_yaml("docker-compose.yml")
SERVICES: dict[str, Any] = COMPOSE["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
INSTRUCTIONS = [
    " ".join(line.split())
    for line in re.sub(r"\\\n", " ", DOCKERFILE).splitlines()
    if line.strip() and not line.startswith("#")
]
LAST_STAGE = INSTRUCTIONS[max(n for n, line in enumerate(INSTRUCTIONS) if line.startswith("FROM")) :]


# Schemas, where the checker is installed


@pytest.mark.parametrize(
    "schema, path", [("compose-spec", "docker-compose.yml"), ("github-workflows", ".github/workflows/test.yml")]
)
def test_files_fit_the_schema_of_their_program(schema: str, path: str) -> None:
    pytest.importorskip("check_jsonschema")
    jsonschema = pytest.importorskip("jsonschema")
    folder = importlib.resources.files("check_jsonschema.builtin_schemas.vendor")
    rules = json.loads(folder.joinpath(f"{schema}.json").read_text(encoding="utf-8"))
    jsonschema.validate(read_yaml(path), rules)


# The image


def test_the_image_runs_as_nobody_in_particular() -> None:
    users = [line for line in LAST_STAGE if line.startswith("USER")]
    assert users and users[-1] not in ("USER root", "USER 0", "USER 0:0")
    assert LAST_STAGE.index(users[-1]) < min(n for n, s in enumerate(LAST_STAGE) if s.startswith(("CMD", "ENTRYPOINT")))


def test_the_image_stops_gently_and_says_whether_it_is_ready() -> None:
    assert "STOPSIGNAL SIGTERM" in LAST_STAGE
    assert any(line.startswith("HEALTHCHECK") and "/readyz" in line for line in LAST_STAGE)


def test_the_serving_image_gets_nothing_but_the_serving_environment_and_the_model() -> None:
    copied = [line for line in LAST_STAGE if line.startswith("COPY --from")]
    assert copied == [
        "COPY --from=serve /opt/semcache /opt/semcache",
        "COPY --from=model /opt/models /opt/models",
    ]
    stage = INSTRUCTIONS[: next(n for n, line in enumerate(INSTRUCTIONS) if line.endswith("AS model"))]
    installed = [line for line in stage if "pip install" in line]
    assert all("requirements/serve.txt" in line or "--no-deps" in line for line in installed)


def test_the_image_reports_to_nobody() -> None:
    assert any("ORT_DISABLE_TELEMETRY=1" in line for line in LAST_STAGE if line.startswith("ENV"))


def test_the_serving_requirements_hold_no_torch() -> None:
    names = re.findall(r"^[A-Za-z0-9_.-]+", (ROOT / "requirements" / "serve.txt").read_text(), re.MULTILINE)
    assert not {"torch", "transformers", "sentence-transformers"} & {name.lower() for name in names}


def test_the_image_and_the_makefile_prepare_the_model_with_the_same_command() -> None:
    command = "semcache model prepare all-MiniLM-L6-v2"
    assert command in DOCKERFILE and command in (ROOT / "Makefile").read_text()


def test_everything_the_dockerfile_copies_is_let_through_to_the_build() -> None:
    allowed = [line[1:].rstrip("/") for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"]
    for line in INSTRUCTIONS:
        if line.startswith("COPY") and "--from" not in line:
            for source in line.split()[1:-1]:
                assert (ROOT / source).exists(), source
                assert any(source == path or source.startswith(f"{path}/") for path in allowed), source


def test_the_command_line_of_the_image_is_one_that_exists() -> None:
    assert 'ENTRYPOINT ["semcache"]' in LAST_STAGE
    assert 'CMD ["serve", "-c", "/etc/semcache/semcache.yaml"]' in LAST_STAGE
    assert "COPY config/docker.yaml /etc/semcache/semcache.yaml" in LAST_STAGE


def test_the_paths_of_the_image_are_those_of_its_settings() -> None:
    settings = config.load(ROOT / "config" / "docker.yaml", {})
    volume = next(line.split()[1] for line in LAST_STAGE if line.startswith("VOLUME"))
    assert settings.cache.store.startswith(f"sqlite:{volume}/")
    assert f"EXPOSE {settings.server.port} {settings.server.admin_port}" in LAST_STAGE


def test_data_files_beside_the_code_are_installed_with_it() -> None:
    """An image that installs the package must find what a checkout finds."""
    globs = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["semcache"]
    for path in (ROOT / "semcache").glob("*.yaml"):
        assert any(fnmatchcase(path.name, glob) for glob in globs), path.name


# Compose


def images() -> Iterator[str]:
    yield from (service["image"] for service in SERVICES.values())
    yield from re.findall(r"^ARG PYTHON=(\S+)", DOCKERFILE, re.MULTILINE)


def test_every_image_names_its_version() -> None:
    for image in images():
        tag = image.rpartition("/")[2].partition(":")[2]
        assert tag and tag != "latest" and any(character.isdigit() for character in tag), image


def test_the_profiles_are_those_the_file_explains() -> None:
    profiles = {name: service.get("profiles", []) for name, service in SERVICES.items()}
    assert profiles == {
        "semcache": [],
        "vllm": ["gpu"],
        "ollama": ["cpu"],
        "ollama-model": ["cpu"],
        "redis": ["redis"],
        "prometheus": ["metrics"],
        "grafana": ["metrics"],
    }
    explained = (ROOT / "docker-compose.yml").read_text().partition("\nname:")[0]
    assert all(f"--profile {profile}" in explained for profile in ("gpu", "cpu", "metrics"))


def test_nothing_is_published_beyond_this_machine() -> None:
    for service in SERVICES.values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_volumes_and_mounts_are_there() -> None:
    for name, service in SERVICES.items():
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            assert (ROOT / source).exists() if source.startswith(".") else source in COMPOSE["volumes"], (name, mount)
        for other in service.get("depends_on", []):
            assert other in SERVICES


def test_the_container_gets_longer_to_stop_than_answers_get_to_finish() -> None:
    settings = config.load(ROOT / "config" / "docker.yaml", {})
    assert int(SERVICES["semcache"]["stop_grace_period"].removesuffix("s")) > settings.server.drain


def test_every_variable_given_to_the_proxy_is_one_that_its_settings_read() -> None:
    read = set(re.findall(r"\$\{(\w+)", (ROOT / "config" / "docker.yaml").read_text()))
    assert set(SERVICES["semcache"]["environment"]) == read


def test_prometheus_scrapes_the_admin_port_and_grafana_reads_prometheus() -> None:
    settings = config.load(ROOT / "config" / "docker.yaml", {})
    (job,) = read_yaml("config/prometheus.yaml")["scrape_configs"]
    assert job["static_configs"][0]["targets"] == [f"semcache:{settings.server.admin_port}"]
    (source,) = read_yaml("config/grafana/provisioning/datasources/prometheus.yaml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert {panel["datasource"]["uid"] for panel in charts()} == {source["uid"]}
    (provider,) = read_yaml("config/grafana/provisioning/dashboards/semcache.yaml")["providers"]
    mounts = [mount.split(":")[1] for mount in SERVICES["grafana"]["volumes"]]
    assert provider["options"]["path"] in mounts


# The dashboard


def charts() -> list[dict[str, Any]]:
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


async def metrics_there_are(folder: Path) -> set[str]:
    """Names in the exposition of a real proxy, after one request of every kind."""
    async with running_proxy(folder) as proxy:
        proxy.backend.finish_reason = "length"
        await proxy.ask("one answer that is not kept")
        for verdict in Verdict:
            proxy.app.telemetry.observe(
                Outcome(
                    "r",
                    0.0,
                    verdict=verdict,
                    reason=Reason.NO_ENTRY,
                    tier=Tier.SEMANTIC,
                    similarity=0.9,
                    fwd_status=200,
                    error="UpstreamError",
                    phases_ms={"embed": 1.0},
                    ttfb_ms=1.0,
                    total_ms=1.0,
                )
            )
        exposition = proxy.app.telemetry.render().decode()
    samples = re.findall(r"^([a-z_]+)[{ ]", exposition, re.MULTILINE)
    families = re.findall(r"^# TYPE (\S+)", exposition, re.MULTILINE)  # those without a sample yet
    return {*samples, *families}


async def test_the_dashboard_asks_only_for_metrics_there_are(tmp_path: Path) -> None:
    there = await metrics_there_are(tmp_path)
    for panel in charts():
        for target in panel["targets"]:
            for name in re.findall(r"\b(?:semcache|process)_[a-z_]+\b", target["expr"]):
                assert name in there, f"{panel['title']}: {name}"


def test_panels_do_not_overlap_and_each_has_its_own_number() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(at["x"] + dx, at["y"] + dy) for dx in range(at["w"]) for dy in range(at["h"])}
        assert not taken & cells and at["x"] + at["w"] <= 24, panel["title"]
        taken |= cells


# The workflow and the licence


def test_the_workflow_runs_what_developers_run() -> None:
    (job,) = read_yaml(".github/workflows/test.yml")["jobs"].values()
    assert job["steps"][-1] == {"run": "make test"}
    versions = [step.get("with", {}).get("python-version") for step in job["steps"]]
    assert "3.11" in versions


def test_the_licence_is_the_one_the_package_names() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text and "Version 2.0, January 2004" in text and "END OF TERMS AND CONDITIONS" in text
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["license"] == "Apache-2.0"
