"""The preference ledger: rows taken in once, frozen, consumed, released and erased on record.

Functions open the ledger of a home for one call and are safe from several processes at once.
"""

from alignflow.ledger.erasing import Erased, erase
from alignflow.ledger.holdout import held_out_file, held_out_prompts, renew_holdout
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
from alignflow.ledger.pinned import HeldOutPair, held_out_pairs, pinned_prompts
from alignflow.ledger.reports import quarantined, show, status
from alignflow.ledger.snapshots import Snapshot, freeze, training_rows
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
    "add",
    "add_sources",
    "add_stream",
    "champion",
    "erase",
    "freeze",
    "generation",
    "held_out_file",
    "held_out_pairs",
    "held_out_prompts",
    "lineage",
    "mark_dropped",
    "mark_sent",
    "pending_events",
    "pinned_prompts",
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
    "withdraw",
]
