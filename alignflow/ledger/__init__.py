"""The preference ledger: rows taken in once, frozen, consumed, released and erased on record.

Functions open the ledger of a home for one call and are safe from several processes at once.
"""

from alignflow.ledger.erasing import Erasable as Erasable
from alignflow.ledger.erasing import erasable as erasable
from alignflow.ledger.erasing import erase as erase
from alignflow.ledger.history import Happened as Happened
from alignflow.ledger.history import Milestone as Milestone
from alignflow.ledger.history import milestones as milestones
from alignflow.ledger.holdout import held_out_file as held_out_file
from alignflow.ledger.holdout import held_out_hashes as held_out_hashes
from alignflow.ledger.holdout import held_out_pairs as held_out_pairs
from alignflow.ledger.holdout import holdout_prompts_file as holdout_prompts_file
from alignflow.ledger.holdout import renew_holdout as renew_holdout
from alignflow.ledger.inbox import Taken as Taken
from alignflow.ledger.inbox import default_inbox as default_inbox
from alignflow.ledger.inbox import inbox_at as inbox_at
from alignflow.ledger.inbox import take_in as take_in
from alignflow.ledger.ingest import Added as Added
from alignflow.ledger.ingest import add as add
from alignflow.ledger.ingest import add_stream as add_stream
from alignflow.ledger.lineage import Generation as Generation
from alignflow.ledger.lineage import Judgement as Judgement
from alignflow.ledger.lineage import PromotionRace as PromotionRace
from alignflow.ledger.lineage import champion as champion
from alignflow.ledger.lineage import generation as generation
from alignflow.ledger.lineage import judgements as judgements
from alignflow.ledger.lineage import lineage as lineage
from alignflow.ledger.lineage import mark_dropped as mark_dropped
from alignflow.ledger.lineage import newest_generation as newest_generation
from alignflow.ledger.lineage import promote as promote
from alignflow.ledger.lineage import rollback as rollback
from alignflow.ledger.lineage import set_state as set_state
from alignflow.ledger.news import news as news
from alignflow.ledger.news import seen_now as seen_now
from alignflow.ledger.outbox import PROMOTED as PROMOTED
from alignflow.ledger.outbox import Event as Event
from alignflow.ledger.outbox import mark_sent as mark_sent
from alignflow.ledger.outbox import pending_events as pending_events
from alignflow.ledger.outbox import set_threshold as set_threshold
from alignflow.ledger.parsing import Told as Told
from alignflow.ledger.reports import STATES as STATES
from alignflow.ledger.reports import printable as printable
from alignflow.ledger.reports import quarantined as quarantined
from alignflow.ledger.reports import show as show
from alignflow.ledger.reports import status as status
from alignflow.ledger.snapshot_files import described as described
from alignflow.ledger.snapshots import freeze as freeze
from alignflow.ledger.snapshots import training_rows as training_rows
from alignflow.ledger.verdicts import Release as Release
from alignflow.ledger.verdicts import release as release
from alignflow.ledger.verdicts import withdraw as withdraw
