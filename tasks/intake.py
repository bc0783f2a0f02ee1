"""Taking preferences in from the inbox."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task

from alignflow.ledger import Added, Taken, default_inbox, set_threshold, take_in
from alignflow.recipe import RetrainSection
from tasks.flow_runs import IDLE, name_run
from tasks.prefect_artifacts import key_of, show_table


@task
def take_in_complete(
    recipe: str, home: Path, inbox: str | None, section: RetrainSection
) -> dict[str, Any]:
    """Takes in what is complete in the inbox; the rows that call for a retrain write an event.

    The flow run is named for what was taken in, and tagged where that is nothing.

    Args:
        recipe: Its name.
        home: Absolute home.
        inbox: Folder or fsspec address; None is the home's.
        section: Names the preference set and how many new rows call for a retrain.

    Returns:
        Counts in pairs, and the names of files that may still be written or are of another kind.
    """
    set_threshold(home, section.preference_set, section.min_new_pairs)
    taken = take_in(home, inbox or str(default_inbox(home)), section.preference_set)
    for sentence in sentences(taken):
        get_run_logger().info("%s", sentence)
    result = summary(taken)
    if result["files"] or result["refused_files"]:
        rows = [{"what": name, "pairs": result[name]} for name in COUNTED]
        text = f"Pairs taken into {section.preference_set} from {result['files']} files."
        show_table(rows, key_of(recipe, "ingest"), text)
        name_run(title(result))
    else:
        name_run(title(result), IDLE)
    return result


COUNTED = ("read", "accepted", "duplicates", "contradictory", "held_out", "unpaired")


def summary(taken: Taken) -> dict[str, Any]:
    """What `prefs add --json` prints, of all files together."""
    parts = [added.as_json() for added in taken.added]
    quarantined = sum((Counter(part["quarantined"]) for part in parts), Counter[str]())
    return {
        **{name: sum(part[name] for part in parts) for name in ("files", *COUNTED)},
        "quarantined": dict(quarantined),
        "refused_files": [
            {"file": entry["file"], "reason": entry["reason"]}
            for part in parts
            for entry in part["refused_files"]
        ],
        "waiting_files": taken.waiting,
        "ignored_files": taken.ignored,
    }


def title(result: Mapping[str, Any]) -> str:
    """What a run took in, in a few words."""
    bad, refused = sum(result["quarantined"].values()), len(result["refused_files"])
    words = [f"{result['accepted']} new"] if result["files"] else []
    counted = {"known": result["duplicates"], "quarantined": bad, "refused": refused}
    words += [f"{number} {what}" for what, number in counted.items() if number]
    return ", ".join(words) or "nothing new"


def sentences(taken: Taken) -> Iterator[str]:
    """What is said of each file. No text of a row: what Prefect keeps, `prefs erase` cannot reach."""
    yield from map(_of_file, taken.added)
    yield from (f"{name} may still be written: left for the next run" for name in taken.waiting)
    yield from (f"{name} is of a kind that is not read" for name in taken.ignored)


def _of_file(added: Added) -> str:
    if added.refused:
        entry = added.refused[0]
        return f"{entry.file} refused ({entry.reason}) and moved to rejected/"
    counts = added.counts
    bad = ", ".join(f"{number} {reason}" for reason, number in added.reasons.items())
    return (
        f"{counts.accepted} accepted, {counts.duplicates} duplicates, {counts.held_out} held out, "
        f"quarantined: {bad or 'none'}"
    )
