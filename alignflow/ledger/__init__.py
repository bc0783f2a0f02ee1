"""The preference ledger: rows taken in once, frozen, consumed, released and erased on record.

Functions open the ledger of a home for one call and are safe from several processes at once.
"""

from alignflow.ledger.erasing import Erased, erase
from alignflow.ledger.holdout import (
    HeldOutPair,
    held_out_file,
    held_out_hashes,
    held_out_pairs,
    held_out_prompts,
    holdout_prompts_file,
    renew_holdout,
)
from alignflow.ledger.inbox import Taken, default_inbox, inbox_at, take_in
from alignflow.ledger.incoming import Refused, Source
from alignflow.ledger.ingest import Added, add, add_sources, add_stream
from alignflow.ledger.lineage import (
    Generation,
    PromotionRace,
    SetState,
    champion,
    generation,
    lineage,
    mark_dropped,
    promote,
    rollback,
    set_state,
)
from alignflow.ledger.outbox import Event, mark_sent, pending_events, set_threshold
from alignflow.ledger.reports import quarantined, show, status
from alignflow.ledger.snapshot_files import described
from alignflow.ledger.snapshots import Snapshot, freeze, training_rows
from alignflow.ledger.store import has_ledger
from alignflow.ledger.verdicts import release, withdraw

__all__ = [
    "Added",
    "Erased",
    "Event",
    "Generation",
    "HeldOutPair",
    "PromotionRace",
    "Refused",
    "SetState",
    "Snapshot",
    "Source",
    "Taken",
    "add",
    "add_sources",
    "add_stream",
    "champion",
    "default_inbox",
    "described",
    "erase",
    "freeze",
    "generation",
    "has_ledger",
    "held_out_file",
    "held_out_hashes",
    "held_out_pairs",
    "held_out_prompts",
    "holdout_prompts_file",
    "inbox_at",
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
    "take_in",
    "training_rows",
    "withdraw",
]
