"""A notification that cannot be sent, and what `check` says of a block, with a real Prefect server."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from fake_runs import fake_recipe
from prefect import flow
from webhook import SLUG, saved_webhook

from alignflow.checking.notification import notification_findings
from alignflow.pipeline.plan import stage_spec
from tasks.notification import notify


@pytest.mark.parametrize(
    ("slug", "said"),
    [(SLUG, "500"), ("custom-webhook/nobody", "nobody"), ("slack-webhook/team", "team")],
)
def test_what_nobody_could_be_told_is_a_warning_in_the_log(
    slug: str, said: str, prefect_server: str, caplog: pytest.LogCaptureFixture
) -> None:
    with saved_webhook(status=500) as heard:
        flow(lambda: notify(fake_recipe(notify=slug), "subject", "body"), name="told")()
    warned = [record for record in caplog.records if record.levelname == "WARNING"]
    assert [record.name for record in warned] == ["prefect.flow_runs"]
    assert f"{slug} was not notified" in warned[0].getMessage() and said in warned[0].getMessage()
    assert bool(heard) == (slug == SLUG)


def test_check_names_a_block_that_is_not_there_only_where_a_server_is_configured(
    prefect_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.blocks.system import Secret

    missing = fake_recipe(notify="slack-webhook/team")
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    assert notification_findings(missing) == []
    monkeypatch.setenv("PREFECT_API_URL", prefect_server)
    with saved_webhook():
        assert notification_findings(fake_recipe(notify=SLUG)) == []
    [found] = notification_findings(missing)
    assert found.level == "warning" and "has no block slack-webhook/team" in found.text
    Secret(value="x").save("mute", overwrite=True)  # type: ignore[call-arg]
    [found] = notification_findings(fake_recipe(notify="secret/mute"))
    assert "cannot notify" in found.text
    assert notification_findings(fake_recipe()) == []
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"http://127.0.0.1:{free.getsockname()[1]}/api"
    monkeypatch.setenv("PREFECT_API_URL", address)
    [found] = notification_findings(missing)
    assert found.level == "note" and "does not answer" in found.text


def test_whom_to_notify_is_in_no_stages_key(tmp_path: Path) -> None:
    keys: Any = [
        stage_spec(fake_recipe(notify=slug), "prepare", tmp_path, {}).key for slug in (None, SLUG)
    ]
    assert keys[0] == keys[1]
