"""What `prefect deploy`, compose and Kubernetes are given: every name in it is one that exists."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_runs import fake_recipe
from pydantic import TypeAdapter

from alignflow.errors import RecipeError
from alignflow.recipe import DATA_PARTS
from alignflow.services.deploy import WORK_POOL, check_recipe, passed_on, with_absolute_paths
from alignflow.settings import Settings, has_ledger, without_password
from alignflow.stages.environment import stage_environment

ROOT = Path(__file__).parents[2]
PREFECT = yaml.safe_load((ROOT / "prefect.yaml").read_text())
DEPLOYMENTS = {entry["name"]: entry for entry in PREFECT["deployments"]}
COMPOSE = yaml.safe_load((ROOT / "infra" / "compose.yaml").read_text())
KUBERNETES = [
    document
    for path in sorted((ROOT / "infra" / "k8s").glob("*.yaml"))
    for document in yaml.safe_load_all(path.read_text())
]
SERVICE_KEYS = {
    "image",
    "build",
    "command",
    "environment",
    "volumes",
    "ports",
    "depends_on",
    "healthcheck",
    "restart",
    "working_dir",
    "deploy",
    "shm_size",
    "stop_grace_period",
}


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """What the build step returns."""
    for name in ("ALIGNFLOW_RECIPE", "ALIGNFLOW_INBOX", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ALIGNFLOW_HOME", str(tmp_path))
    monkeypatch.chdir(ROOT)
    [step] = PREFECT["build"]
    [(name, arguments)] = step.items()
    assert name == f"{check_recipe.__module__}.{check_recipe.__name__}"
    assert arguments.pop("id") == "checked"
    try:
        return check_recipe(**arguments)
    finally:
        arguments["id"] = "checked"


def filled(value: Any, checked: dict[str, Any]) -> Any:
    """`{{ checked.NAME }}` replaced, as `prefect deploy` does."""
    if isinstance(value, dict):
        return {name: filled(item, checked) for name, item in value.items()}
    match = re.fullmatch(r"\{\{ checked\.(\w+) \}\}", value) if isinstance(value, str) else None
    return checked[match[1]] if match else value


@pytest.mark.slow
@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_a_deployments_flow_exists_and_takes_its_parameters(
    name: str, checked: dict[str, Any]
) -> None:
    from prefect import Flow

    deployment = DEPLOYMENTS[name]
    module, _, function = deployment["entrypoint"].rpartition(".")
    flow = getattr(importlib.import_module(module), function)
    assert isinstance(flow, Flow) and deployment["name"] == name
    given = filled(deployment.get("parameters", {}), checked)
    triggered = [trigger.get("parameters", {}) for trigger in deployment.get("triggers", [])]
    assert set(given).union(*triggered) <= set(flow.parameters.properties)
    if name != "requeue":
        flow.validate_parameters(given)
    assert deployment["work_pool"]["name"] == WORK_POOL
    assert filled(deployment["work_pool"]["job_variables"], checked)["env"] == {
        "ALIGNFLOW_HOME": checked["home"]
    }


@pytest.mark.slow
def test_schedules_limits_and_triggers_are_what_prefect_takes() -> None:
    from prefect.client.schemas.objects import ConcurrencyLimitConfig
    from prefect.client.schemas.schedules import SCHEDULE_TYPES
    from prefect.events import DeploymentTriggerTypes

    names = set()
    for deployment in DEPLOYMENTS.values():
        for schedule in deployment.get("schedules", []):
            timing = {key: value for key, value in schedule.items() if key != "active"}
            TypeAdapter(SCHEDULE_TYPES).validate_python(timing)
        for trigger in deployment.get("triggers", []):
            TypeAdapter(DeploymentTriggerTypes).validate_python(trigger)
            names |= set(trigger.get("match_related", {}).get("prefect.resource.name", []))
        if limit := deployment.get("concurrency_limit"):
            assert ConcurrencyLimitConfig.model_validate(limit).limit == 1
    assert names <= set(DEPLOYMENTS)
    assert DEPLOYMENTS["retrain"]["concurrency_limit"]["collision_strategy"] == "ENQUEUE"


def test_the_trigger_expects_the_event_that_the_ledger_writes() -> None:
    from alignflow.ledger import Event
    from alignflow.ledger.outbox import READY
    from tasks.events import as_prefect_event

    [trigger] = DEPLOYMENTS["retrain"]["triggers"]
    sent = as_prefect_event(Event(1, READY, {"set": "default"}, "now"), ROOT)
    assert trigger["expect"] == [sent["event"]]
    pattern = trigger["match"]["prefect.resource.id"].replace("*", ".*")
    assert re.fullmatch(pattern, sent["resource"]["prefect.resource.id"])


def test_the_automations_are_what_prefect_takes_and_name_our_flows() -> None:
    from tasks.provision import read_automations

    [automation] = read_automations(ROOT / "deployments" / "automations.yaml")
    related = automation.trigger.model_dump()["match_related"]
    assert set(related["prefect.resource.name"]) <= set(DEPLOYMENTS)


def test_the_kubernetes_work_pool_fills_every_place_of_its_template() -> None:
    from prefect.client.schemas.actions import WorkPoolCreate

    template = json.loads((ROOT / "deployments" / "work-pools" / "kubernetes.json").read_text())
    WorkPoolCreate(name=WORK_POOL, type="kubernetes", base_job_template=template)
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(template["job_configuration"])))
    assert used == set(template["variables"]["properties"])
    claims = {entry["metadata"]["name"] for entry in KUBERNETES if "Claim" in entry["kind"]}
    assert template["variables"]["properties"]["home_claim"]["default"] in claims


def test_the_kubernetes_manifests_name_only_what_is_there() -> None:
    versions = {
        "PersistentVolumeClaim": "v1",
        "ServiceAccount": "v1",
        "Deployment": "apps/v1",
        "Role": "rbac.authorization.k8s.io/v1",
        "RoleBinding": "rbac.authorization.k8s.io/v1",
    }
    named = {(entry["kind"], entry["metadata"]["name"]) for entry in KUBERNETES}
    for entry in KUBERNETES:
        assert entry["apiVersion"] == versions[entry["kind"]]
    [binding] = [entry for entry in KUBERNETES if entry["kind"] == "RoleBinding"]
    [worker] = [entry for entry in KUBERNETES if entry["kind"] == "Deployment"]
    assert ("Role", binding["roleRef"]["name"]) in named
    assert {("ServiceAccount", who["name"]) for who in binding["subjects"]} <= named
    pod = worker["spec"]["template"]
    assert worker["spec"]["selector"]["matchLabels"] == pod["metadata"]["labels"]
    assert ("ServiceAccount", pod["spec"]["serviceAccountName"]) in named
    [container] = pod["spec"]["containers"]
    parse(container["command"])
    template = (ROOT / "deployments" / "work-pools" / "kubernetes.json").read_text()
    for source in container["envFrom"]:
        assert f'"name": "{source["secretRef"]["name"]}"' in template


def test_compose_has_only_services_files_and_keys_that_exist() -> None:
    services = COMPOSE["services"]
    volumes = set()
    for name, service in services.items():
        assert set(service) <= SERVICE_KEYS, name
        assert set(service.get("depends_on", {})) <= set(services)
        for other, how in service.get("depends_on", {}).items():
            assert how["condition"] == "service_healthy" and "healthcheck" in services[other]
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), "only this machine can connect"
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert list((ROOT / "infra" / source).iterdir())
            else:
                volumes.add(source)
        if build := service.get("build"):
            assert (ROOT / "infra" / build["context"] / build["dockerfile"]).is_file()
    assert volumes == set(COMPOSE["volumes"])


def test_no_password_of_compose_has_a_value_in_the_file() -> None:
    text = (ROOT / "infra" / "compose.yaml").read_text()
    given = re.findall(r"(?:PASSWORD|AUTH_STRING|SECRET_KEY): (.*)", text)
    assert len(given) >= 5 and all(value.startswith("${") for value in given)
    assert re.findall(r"://\w+:([^@\s]*)@", text) == ["${POSTGRES_PASSWORD:?}"] * 3


def test_every_command_of_compose_parses() -> None:
    for service in COMPOSE["services"].values():
        if "command" in service:
            parse(service["command"])


def test_the_image_copies_what_is_there_and_starts_a_worker() -> None:
    text = (ROOT / "infra" / "Dockerfile").read_text()
    for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE):
        *sources, _ = line.split()
        assert all((ROOT / source).exists() for source in sources), line
    [command] = re.findall(r"^CMD (.*)$", text, re.MULTILINE)
    parse(json.loads(command))
    packages = re.findall(r'packages = \["(.*)"\]', (ROOT / "pyproject.toml").read_text())
    assert set(packages[0].split('", "')) <= set(
        re.findall(r"^COPY (\w+) \w+$", text, re.MULTILINE)
    )


def parse(command: list[str]) -> None:
    """Has the program's own parser take a command line, without running it."""
    program, *arguments = command
    if program == "prefect":
        from prefect.cli._app import _app

        own = [word for word in arguments if word != "--no-prompt"]  # an option of all commands
        _app.parse_args(own, exit_on_error=False, print_error=False)
    elif program == "mlflow":
        known = mlflow_options()
        assert arguments[0] == "server"
        assert {word.partition("=")[0] for word in arguments[1:]} <= known
    else:
        assert (program, arguments[0]) == ("python", "-m")
        importlib.import_module(arguments[1])
        assert all((ROOT / path).is_file() for path in arguments[2:])


def mlflow_options() -> set[str]:
    """Options that MLflow's command line declares; read, for importing it takes seconds."""
    spec = importlib.util.find_spec("mlflow")
    assert spec is not None and spec.origin is not None
    folder = Path(spec.origin).parent
    sources = [*folder.glob("cli/*.py"), folder / "utils" / "cli_args.py"]
    text = "\n".join(path.read_text() for path in sources)
    return {option for found in re.findall(r'"(--[a-z/ -]+)"', text) for option in found.split("/")}


@pytest.mark.parametrize("name", ["MLFLOW_TRACKING_URI", "HF_HOME"])
def test_an_address_with_a_password_never_gets_into_a_deployment(name: str) -> None:
    with pytest.raises(RecipeError, match=f"{name} holds a password") as raised:
        passed_on({name: "https://user:canary@host/path"})
    assert "canary" not in str(raised.value)
    assert passed_on({name: "https://host", "OTHER": "x"}) == {name: "https://host"}


def test_no_secret_reaches_a_stage_or_what_is_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    secret = "postgresql://user:canary@host/db"
    for name in ("MLFLOW_TRACKING_URI", "ALIGNFLOW_LEDGER_URL", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, secret)
    assert "canary" not in str(stage_environment("dpo")) + str(stage_environment("prepare"))
    assert "canary" not in repr(Settings().ledger_url) and has_ledger(tmp_path)
    assert without_password(secret) == "postgresql://user:***@host/db"
    assert without_password("sqlite:////home/m.db") == "sqlite:////home/m.db"


def test_the_report_and_the_note_of_a_run_hold_no_password_of_mlflow(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from alignflow.tracking import Tracker

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:canary@127.0.0.1:9")
    tracker = Tracker(fake_recipe(), tmp_path, "run")
    assert tracker.place()["tracking_uri"] == "http://user:***@127.0.0.1:9"


@pytest.mark.parametrize("part", DATA_PARTS)
def test_the_sources_of_every_part_of_a_deployed_recipe_are_absolute(
    tmp_path: Path, part: str
) -> None:
    given = {"sft": "builtin:freight-sft", "preferences": "builtin:freight-preferences"}
    recipe = fake_recipe(data=given | {part: "rows.jsonl"})
    moved = getattr(with_absolute_paths(recipe, tmp_path).data, part)
    assert [source.source for source in moved] == [str(tmp_path / "rows.jsonl")]


def test_every_file_that_a_deployed_recipe_names_has_an_absolute_path(tmp_path: Path) -> None:
    names = ("base", "chat.jinja", "adapter", "metric.py", "schema.json", "reward.py", "judge")
    for name in names:
        (tmp_path / name).mkdir() if "." not in name else (tmp_path / name).touch()
    ppo = {
        "rewards": [{"source": "reward.py:score"}, "reward_model"],
        "watch": {"metric": "metric.py"},
    }
    recipe = fake_recipe(
        base_model={"source": "base", "chat_template": "chat.jinja"},
        data={
            "sft": "rows.json.gz",
            "preferences": "builtin:freight-preferences",
            "prompts": "p.csv",
        },
        tuning={"init_adapter": "adapter"},
        method="ppo",
        dpo=None,
        ppo=ppo,
        evaluation={"metrics": ["metric.py", "exact_match"], "json_schema": "schema.json"},
        retrain={"judge": {"model": "judge"}},
    )
    moved = with_absolute_paths(recipe, tmp_path)
    assert moved.base_model.source == str(tmp_path / "base")
    assert moved.base_model.chat_template == str(tmp_path / "chat.jinja")
    assert moved.data.sft[0].source == str(tmp_path / "rows.json.gz")
    assert moved.tuning.init_adapter == str(tmp_path / "adapter")
    assert moved.evaluation.metrics == [str(tmp_path / "metric.py"), "exact_match"]
    assert moved.evaluation.json_schema == str(tmp_path / "schema.json")
    assert moved.ppo is not None and moved.ppo.watch is not None
    assert [term.source for term in moved.ppo.rewards] == [
        f"{tmp_path / 'reward.py'}:score",
        "reward_model",
    ]
    assert moved.ppo.watch.metric == str(tmp_path / "metric.py")
    judge = moved.retrain.judge if moved.retrain else None
    assert judge is not None and judge.model is not None
    assert judge.model.source == str(tmp_path / "judge")
    assert moved == with_absolute_paths(moved, tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("retrain", "message"),
    [
        ({"gate": {"metric": "exact_mach"}}, "retrain.gate.metric: is 'exact_mach'"),
        ({"judge": {"function": "no.such:judge"}}, "retrain.judge.function: 'no.such:judge' is no"),
        ({"judge": {"model": "./nowhere"}}, "retrain.judge.model: './nowhere' is not a model"),
    ],
)
def test_what_the_gate_could_not_use_fails_the_deployment(
    retrain: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "recipe.yaml"
    recipe = fake_recipe(retrain=retrain)
    path.write_text(json.dumps(recipe.model_dump(mode="json", exclude_unset=True)))
    monkeypatch.setenv("ALIGNFLOW_RECIPE", str(path))
    monkeypatch.setenv("ALIGNFLOW_HOME", str(tmp_path))
    with pytest.raises(RecipeError) as refused:
        check_recipe("unused.yaml")
    assert message in str(refused.value)


def test_a_deployed_recipe_has_absolute_paths_and_a_bad_one_fails_the_deployment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recipe = fake_recipe(data={"sft": "a.jsonl", "preferences": ["builtin:freight-preferences"]})
    moved = with_absolute_paths(recipe, tmp_path).data
    assert moved.sft[0].source == str(tmp_path / "a.jsonl")
    assert moved.preferences[0].source == "builtin:freight-preferences"
    (tmp_path / "bad.yaml").write_text("name: bad\nbase_model: builtin:freight-base\n")
    monkeypatch.setenv("ALIGNFLOW_RECIPE", str(tmp_path / "bad.yaml"))
    monkeypatch.setenv("ALIGNFLOW_HOME", str(tmp_path))
    with pytest.raises(RecipeError, match=r"bad\.yaml"):
        check_recipe("unused.yaml")
    monkeypatch.setenv("ALIGNFLOW_HOME", "relative")
    with pytest.raises(RecipeError, match="a relative path"):
        check_recipe("unused.yaml")
