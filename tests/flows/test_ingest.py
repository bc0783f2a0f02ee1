"""The flow `ingest` and the events it sends, with a real Prefect server."""

from __future__ import annotations

import os
import socket
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from fake_runs import fake_recipe, wait_until
from ledger_cases import row, swapped, write
from prefect.client.orchestration import get_client
from prefect.logging import disable_run_logger
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Completed

from alignflow.errors import RecipeError
from alignflow.ledger import pending_events, promote, renew_holdout, set_threshold, status
from flows.ingest import ingest
from tasks import flow_runs
from tasks.events import as_prefect_event, send_pending

OLD = 1_700_000_000


@pytest.fixture(autouse=True)
def server(prefect_server: str) -> str:
    return prefect_server


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A home whose ledger holds nothing out, without a tracking store."""
    renew_holdout(tmp_path / "home", 0.0)
    return tmp_path / "home"


def recipe(name: str, min_new_pairs: int = 10) -> Any:
    return fake_recipe(retrain={"preference_set": name, "min_new_pairs": min_new_pairs})


def settled(path: Path) -> Path:
    os.utime(path, (OLD, OLD))
    return path


def drop(home: Path, name: str, rows: list[Any]) -> Path:
    return settled(write(home / "inbox" / name, rows))


def events_of(resource: str) -> list[dict[str, Any]]:
    """What the server has of a resource, oldest first."""
    query = {"filter": {"resource": {"id": [resource]}, "order": "ASC"}}
    with get_client(sync_client=True) as client:
        return client.request("POST", "/events/filter", json=query).json()["events"]


def test_what_is_complete_is_taken_in_and_enough_new_rows_are_announced_once(place: Path) -> None:
    drop(place, "a.jsonl", [row(number) for number in range(8)])
    told = ingest(recipe=recipe("announced"), home=place)
    assert (told["files"], told["accepted"]) == (1, 8)
    assert not pending_events(place)
    drop(place, "sub/b.jsonl", [*(row(number) for number in range(6, 12)), b"no"])
    told = ingest(recipe=recipe("announced"), home=place)
    assert (told["accepted"], told["duplicates"]) == (4, 2)
    assert told["quarantined"] == {"json:Expecting value": 1}
    ingest(recipe=recipe("announced"), home=place)
    found = wait_until(lambda: events_of("alignflow.preferences.announced"))
    assert len(found) == 1
    assert found[0]["event"] == "alignflow.preferences.ready"
    assert found[0]["payload"] == {"set": "announced", "new": 10, "judged": 0}
    done = {path.relative_to(place / "inbox").as_posix() for path in place.glob("inbox/**/*.jsonl")}
    assert done == {"done/a.jsonl", "done/sub/b.jsonl"}


def flow_run(state: Any) -> Any:
    with get_client(sync_client=True) as client:
        return client.read_flow_run(state.state_details.flow_run_id)


def test_a_run_is_named_by_what_it_took_in_and_one_that_took_in_nothing_is_idle(
    place: Path,
) -> None:
    drop(place, "a.jsonl", [*(row(number) for number in range(8)), b"no"])
    busy: Any = ingest(recipe=recipe("named"), home=place, return_state=True)
    assert (flow_run(busy).name, flow_run(busy).tags) == ("8 new, 1 quarantined", [])
    drop(place, "b.jsonl", [b"no"] * 3 + [row(1)])
    refused: Any = ingest(recipe=recipe("named"), home=place, return_state=True)
    assert flow_run(refused).name == "1 refused" and flow_run(refused).tags == []
    idle: Any = ingest(recipe=recipe("named"), home=place, return_state=True)
    assert (flow_run(idle).name, flow_run(idle).tags) == ("nothing new", ["idle"])


def test_only_idle_runs_of_this_deployment_are_deleted_and_only_after_an_hour(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with get_client(sync_client=True) as client:
        flow_id = client.create_flow(ingest)
        ours, theirs = (client.create_deployment(flow_id, name) for name in ("ours", "theirs"))

        def run(deployment: Any, tag: str, done: bool = True) -> Any:
            made = client.create_flow_run_from_deployment(deployment, tags=[tag])
            if done:
                client.set_flow_run_state(made.id, Completed(), force=True)
            return made.id

        idle = run(ours, "idle")
        others = {run(ours, "busy"), run(theirs, "idle"), run(ours, "idle", done=False)}

        def left() -> set[Any]:
            return {one.id for one in client.read_flow_runs()} & {idle, *others}

        monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", str(ours))
        ingest(recipe=recipe("forgotten"), home=place)
        assert left() == {idle, *others}
        monkeypatch.setattr(flow_runs, "KEPT", timedelta(seconds=-1))
        ingest(recipe=recipe("forgotten"), home=place)
        assert left() == others


def test_a_file_that_may_still_be_written_is_left_alone(place: Path) -> None:
    fresh = write(place / "inbox" / "fresh.jsonl", [row(1)])
    write(place / "inbox" / "part.jsonl.part", [row(2)])
    opened = drop(place, "open.jsonl", [row(3)])
    drop(place, "table.docx", [row(4)])
    with opened.open("ab"):
        settled(opened)
        told = ingest(recipe=recipe("left"), home=place)
    assert told["waiting_files"] == ["fresh.jsonl", "open.jsonl"]
    assert told["ignored_files"] == ["part.jsonl.part", "table.docx"]
    assert (told["files"], status(place)["rows"], fresh.exists()) == (0, 0, True)
    settled(fresh)
    assert ingest(recipe=recipe("left"), home=place)["files"] == 2


def test_a_bad_file_is_moved_aside_whole_and_the_others_are_taken_in(place: Path) -> None:
    drop(place, "bad.jsonl", [b"no"] * 3 + [row(1)])
    drop(place, "good.jsonl", [row(number) for number in range(3)])
    (place / "inbox" / "link.jsonl").symlink_to("/etc/passwd")
    os.utime(place / "inbox" / "link.jsonl", (OLD, OLD), follow_symlinks=False)
    told = ingest(recipe=recipe("moved"), home=place)
    assert {Path(entry["file"]).name: entry["reason"] for entry in told["refused_files"]} == {
        "bad.jsonl": "mostly_bad",
        "link.jsonl": "symlink",
    }
    assert told["accepted"] == 3
    rejected = {path.name for path in (place / "inbox" / "rejected").iterdir()}
    assert rejected == {"bad.jsonl", "link.jsonl"}


def test_a_file_that_was_taken_in_but_not_moved_is_known_and_moved(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alignflow.ledger import inbox

    drop(place, "a.jsonl", [row(number) for number in range(5)])
    with monkeypatch.context() as patch:
        patch.setattr(inbox.LocalInbox, "move", lambda *_: None)  # as if killed before it
        inbox.take_in(place, str(place / "inbox"), "again")
    told = ingest(recipe=recipe("again"), home=place)
    assert (told["accepted"], told["duplicates"], status(place)["rows"]) == (0, 5, 5)
    drop(place, "a.jsonl", [row(9)])
    assert ingest(recipe=recipe("again"), home=place)["accepted"] == 1
    assert {path.name for path in (place / "inbox" / "done").iterdir()} == {"a.jsonl", "1-a.jsonl"}


def test_an_inbox_at_an_address_is_fetched_and_emptied(place: Path) -> None:
    import fsspec

    system = fsspec.filesystem("memory")
    lines = write(place / "x.jsonl", [row(number) for number in range(4)]).read_bytes()
    for name, content in {"a.jsonl": lines, "sub/b.jsonl": b"no\n", "c.txt": b""}.items():
        system.pipe_file(f"/feedback/{name}", content)
        system.store[f"/feedback/{name}"].modified = system.modified(f"/feedback/{name}").replace(
            year=2020
        )
    system.pipe_file("/feedback/new.jsonl", lines)
    told = ingest(recipe=recipe("remote"), home=place, inbox="memory://feedback")
    assert (told["accepted"], told["waiting_files"]) == (4, ["new.jsonl"])
    assert told["refused_files"] == [
        {"file": "memory://feedback/sub/b.jsonl", "reason": "mostly_bad"}
    ]
    assert sorted(system.find("/feedback")) == [
        "/feedback/c.txt",
        "/feedback/done/a.jsonl",
        "/feedback/new.jsonl",
        "/feedback/rejected/sub/b.jsonl",
    ]
    assert not list((place / "work").iterdir())


def test_an_address_with_a_password_is_refused(place: Path) -> None:
    from alignflow.ledger.inbox import inbox_at

    with pytest.raises(RecipeError, match="holds a password") as raised:
        inbox_at("sftp://user:canary@host/folder", place)
    assert "canary" not in str(raised.value)


def send(home: Path, address: str | None = None) -> int:
    """Sends to the session's server, or to another address."""
    settings = {PREFECT_API_URL: address} if address else {}
    with disable_run_logger(), temporary_settings(settings):
        return send_pending.fn(home)


def nobody() -> str:
    """An address that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"http://127.0.0.1:{free.getsockname()[1]}/api"


def test_what_a_server_that_is_down_did_not_get_is_sent_later_and_nothing_is_lost(
    place: Path,
) -> None:
    drop(place, "a.jsonl", [row(number) for number in range(20)])
    set_threshold(place, "down", 5)
    from alignflow.ledger.inbox import take_in

    take_in(place, str(place / "inbox"), "down")
    promote(place, "down-model", expected=None, digest="d", artifacts={}, reason="by hand")
    assert send(place, nobody()) == 0
    assert [event.event for event in pending_events(place)] == [
        "alignflow.preferences.ready",
        "alignflow.champion.promoted",
    ]
    assert send(place) == 2
    assert pending_events(place) == [] and send(place) == 0
    wait_until(lambda: events_of("alignflow.preferences.down"))
    promoted = wait_until(lambda: events_of("alignflow.model.down-model"))
    assert promoted[0]["event"] == "alignflow.champion.promoted"
    assert promoted[0]["payload"]["generation"] == 0


def test_an_event_sent_twice_is_the_same_event(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks import events

    promote(place, "twice", expected=None, digest="d", artifacts={}, reason="by hand")
    [event] = pending_events(place)
    with monkeypatch.context() as patch:
        patch.setattr(events, "mark_sent", lambda *_: None)  # as if killed before it
        assert send(place) == 1
    assert send(place) == 1
    again = as_prefect_event(event, place)
    found = wait_until(lambda: events_of("alignflow.model.twice"))
    assert [entry["id"] for entry in found] == [again["id"]]


def test_what_prefect_keeps_of_a_run_holds_no_text_of_a_row(place: Path) -> None:
    pair = row(1, annotator=["canary-annotator"])
    drop(place, "a.jsonl", [row(2), row(3), swapped(row(2)), pair, b'{"canary-text": ', row(4)])
    run: Any = ingest(recipe=recipe("canary"), home=place, return_state=True)
    with get_client(sync_client=True) as client:
        query = {"logs": {"flow_run_id": {"any_": [str(run.state_details.flow_run_id)]}}}

        def logs() -> str:
            return client.request("POST", "/logs/filter", json=query).text

        wait_until(lambda: "accepted" in logs())
        assert "canary-" not in logs() and "question 2" not in logs()
