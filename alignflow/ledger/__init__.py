"""The preference ledger: rows taken in once, frozen, consumed, released and erased on record.

Functions open the ledger of a home for one call and are safe from several processes at once.
"""

from alignflow.ledger.erasing import erase
from alignflow.ledger.holdout import (
    held_out_file,
    held_out_hashes,
    held_out_pairs,
    held_out_prompts,
    holdout_prompts_file,
    renew_holdout,
)
from alignflow.ledger.ingest import Added, add, add_stream
from alignflow.ledger.lineage import (
    Generation,
    PromotionRace,
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
from alignflow.ledger.snapshots import freeze, training_rows
from alignflow.ledger.verdicts import release, withdraw

__all__ = [
    "Added",
    "Event",
    "Generation",
    "PromotionRace",
    "add",
    "add_stream",
    "champion",
    "erase",
    "freeze",
    "generation",
    "held_out_file",
    "held_out_hashes",
    "held_out_pairs",
    "held_out_prompts",
    "holdout_prompts_file",
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
    "withdraw",
]
