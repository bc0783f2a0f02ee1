"""The preference ledger: rows taken in once, frozen, consumed, released and erased on record.

Functions open the ledger of a home for one call and are safe from several processes at once.
"""

from alignflow.ledger.erasing import Erased, erase
from alignflow.ledger.holdout import held_out_file, held_out_prompts, renew_holdout
from alignflow.ledger.ingest import Added, Refused, add, add_stream
from alignflow.ledger.lineage import (
    Generation,
    PromotionRace,
    SetState,
    champion,
    lineage,
    mark_dropped,
    promote,
    release,
    rollback,
    set_state,
)
from alignflow.ledger.outbox import Event, mark_sent, pending_events, set_threshold
from alignflow.ledger.reports import quarantined, show, status
from alignflow.ledger.snapshots import Snapshot, freeze, training_rows

__all__ = [
    "Added",
    "Erased",
    "Event",
    "Generation",
    "PromotionRace",
    "Refused",
    "SetState",
    "Snapshot",
    "add",
    "add_stream",
    "champion",
    "erase",
    "freeze",
    "held_out_file",
    "held_out_prompts",
    "lineage",
    "mark_dropped",
    "mark_sent",
    "pending_events",
    "promote",
    "quarantined",
    "release",
    "renew_holdout",
    "rollback",
    "set_state",
    "set_threshold",
    "show",
    "status",
    "training_rows",
]
