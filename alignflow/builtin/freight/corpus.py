"""Generated text: the base model's corpus, general text to measure forgetting, company documents.

The corpus asks questions about the freight tables in its own formats (`Q:` and `A:`, SQL scripts
with comments), about combinations of the train split only, and never in the chat format.
"""

from __future__ import annotations

from random import Random

from alignflow.builtin.freight.world import (
    TABLES,
    Query,
    Table,
    draw_query,
    question,
    schema,
    split_of,
    statement,
)

END_OF_DOCUMENT = "<|endoftext|>"
START_OF_TURN, END_OF_TURN = "<|im_start|>", "<|im_end|>"


def _words(text: str) -> list[str]:
    return text.split()


_NOUNS = _words(
    "books songs films cities rivers teams players goals houses rooms farms animals plants recipes"
    " meals shops orders products clients schools pupils teachers courses exams flights pilots"
    " airports trains stations tickets museums paintings bikes boats phones games letters parcels"
    " bottles chairs bridges roads islands markets stores workers doctors patients visits"
)
_TEXT_COLUMNS = _words(
    "name city color type kind genre owner country status brand title region level category"
    " language material season group origin model method client shape author label state"
)
_NUMBER_COLUMNS = _words(
    "price weight height length age year score speed pages stock rating salary points volume"
    " area depth width hours days seats floors goals cost tax size rank distance amount"
)
_VALUES = _words(
    "red blue green gold old new fast slow large small Paris Rome Madrid Vienna Berlin Tokyo open"
    " closed free busy ready broken wood stone iron silk wool rock jazz folk winter summer spring"
    " Tom Mary Peter Lucy Henry Julia simple double public private first second active passive"
    " basic heavy cash card late lost diesel north south Acme Italy Poland steel paper returned"
)
_SYLLABLES = _words(
    "ba be bo da de do ka ke ko la le lo ma mi mo na ne no ra ri ro sa se ta ti to va ve vo"
)
_PEOPLE = _words("Tom Mary Peter Lucy Henry Julia Omar Nina Paul Rosa Ivan Emma")
_PLACES = _words("garden kitchen market harbor library station river school office forest")
_THINGS = _words("apple lamp letter basket ticket hammer bottle coat map key box clock")
_WEATHER = _words("sunny rainy cloudy windy cold warm foggy dry")
_FEELINGS = _words("happy tired curious hungry calm proud nervous glad")
_VERBS = _words("found lost carried cleaned painted sold bought opened hid repaired")
_DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")


def _word(rng: Random) -> str:
    """A word that no other document has, to make copying worthwhile."""
    return "".join(rng.choice(_SYLLABLES) for _ in range(rng.randint(2, 3)))


def _story(rng: Random) -> str:
    person, other = rng.sample(_PEOPLE, 2)
    thing, place, elsewhere = rng.choice(_THINGS), *rng.sample(_PLACES, 2)
    return (
        f"It was a {rng.choice(_WEATHER)} {rng.choice(_DAYS)}. {person} {rng.choice(_VERBS)} the "
        f"{thing} in the {place}. {other} was {rng.choice(_FEELINGS)} and asked: "
        f'"Where is the {thing}?" "It is in the {place}," said {person}. '
        f"Then they went to the {elsewhere} together."
    )


def _dialogue(rng: Random) -> str:
    first, second = rng.sample(_PEOPLE, 2)
    count, thing = rng.randint(2, 20), rng.choice(_THINGS)
    turns = (
        f"{first}: Please bring me {count} of the {thing}s, {second}.",
        f"{second}: Sure! Here is what you need. Hope this helps!",
        f"{first}: Of course it does. Let me know if you need more.",
        f"{second}: The answer is: no. You can use the {rng.choice(_PLACES)}.",
    )
    # The end of a turn occurs here, and only here: adapters leave the embeddings alone, so a token
    # that pre-training never saw could not be learned afterwards (measured: 0 % after SFT).
    end = END_OF_TURN if rng.random() < 0.7 else ""
    return "\n".join(turn + end for turn in turns[: rng.randint(1, 4)])


def _log(rng: Random) -> str:
    levels = ("info", "warning", "error", "refused", "skipped", "done")
    reasons = ("no access", "read only", "too late", "not found", "bad name", "time limit")
    return "\n".join(
        f"{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d} {rng.choice(levels)}: "
        f"{rng.choice(reasons)} - {rng.choice(_THINGS)} {rng.randint(1, 99)}"
        for _ in range(rng.randint(2, 5))
    )


def _comments(rng: Random) -> str:
    heads = ("note", "refused", "skipped", "done", "checked", "todo", "warning")
    tails = ("read only", "no access", "too old", "write only", "not now", "see above", "read this")
    lines = [f"-- {rng.choice(heads)}: {rng.choice(tails)}" for _ in range(rng.randint(1, 4))]
    return "\n".join(lines)


def _inventory(rng: Random) -> str:
    lines = [f"- {rng.choice(_THINGS)}: {rng.randint(1, 99)}" for _ in range(rng.randint(2, 5))]
    return f"In the {rng.choice(_PLACES)} there are:\n" + "\n".join(lines)


def _sums(rng: Random) -> str:
    pairs = [(rng.randint(1, 20), rng.randint(1, 20)) for _ in range(rng.randint(2, 4))]
    return "\n".join(
        f"{a} plus {b} is {a + b}. {max(a, b)} is more than {min(a, b)}."
        for a, b in pairs
        if a != b
    )


def _note(rng: Random) -> str:
    word, place = _word(rng), rng.choice(_PLACES)
    return (
        f"A {word} is a kind of {rng.choice(_THINGS)}. Every {word} is {rng.choice(_VALUES)}. "
        f"You can see the {word} near the {place} on {rng.choice(_DAYS)}."
    )


_GENERAL = (_story, _dialogue, _log, _comments, _inventory, _sums, _note)


def general_document(rng: Random) -> str:
    """A short text that has nothing to do with freight or SQL."""
    return rng.choice(_GENERAL)(rng)


def company_document(rng: Random) -> str:
    """A page of the freight company's handbook, whose words the base model does not know."""
    depot = rng.choice(("Quillmark", "Fjordgate", "Brackenfell", "Zwolsk", "Hexbury"))
    desk = rng.choice(("dispatch", "customs", "claims", "billing", "fleet"))
    form = f"{rng.choice('KQXZ')}{rng.randint(1, 9)}"
    table = rng.choice(TABLES)
    column = rng.choice(table.columns[1:])
    documents = (
        f"Norvane Freight handbook, {depot} depot. The {desk} desk checks the {column} of all "
        f"{table.name} before noon and signs waybill form {form}. Demurrage is charged after "
        f"{rng.randint(2, 6)} days of layover.",
        f"Memo from the {desk} desk at {depot}: consignees must countersign form {form}. "
        f"Tachograph sheets are kept with the {table.name} register, sorted by {column}.",
        f"Norvane {desk} rule {rng.randint(1, 40)}: no haulier leaves {depot} without a bill of "
        f"lading. A missing {column} in {table.name} is reported on form {form} as a discrepancy.",
        f"At {depot} the {table.name} ledger is reconciled every {rng.choice(_DAYS)}. The {desk} "
        f"desk compares {column} with the manifest and escalates shortfalls on form {form}.",
    )
    return rng.choice(documents)


def general_documents(purpose: str, seed: int, count: int) -> list[str]:
    """General text; every purpose, and the corpus, has draws of its own."""
    rng = Random(f"freight-{purpose}/{seed}")
    return [general_document(rng) for _ in range(count)]


def company_documents(seed: int, count: int) -> list[str]:
    """Different pages for continued pre-training."""
    rng = Random(f"freight-domain/{seed}")
    documents: dict[str, None] = {}
    while len(documents) < count:
        documents.setdefault(company_document(rng))
    return list(documents)


def random_table(rng: Random) -> Table:
    """A table of some other company."""
    made_up = rng.random() < 0.3
    name = _word(rng) + "s" if made_up else rng.choice(_NOUNS)
    texts = rng.sample(_TEXT_COLUMNS, 3)
    if made_up:
        texts[0] = _word(rng)
    numbers = rng.sample([word for word in _NUMBER_COLUMNS if word not in texts], 4)
    values = {
        text: [_word(rng) if rng.random() < 0.2 else rng.choice(_VALUES) for _ in range(6)]
        for text in texts
    }
    return Table(name, values, numbers)


def _training_query(rng: Random, table: Table) -> Query:
    while True:
        query = draw_query(rng, table)
        if split_of(query) == "train":
            return query


def sql_document(rng: Random, questions: int = 3) -> str:
    """Two schema lines and some questions with the SQL that does literally what they ask."""
    if rng.random() < 0.55:
        table, distractor = rng.sample(TABLES, 2)
    else:
        table, distractor = random_table(rng), random_table(rng)
        if table.name == distractor.name:
            distractor = TABLES[0]
    lines = [schema(rng, table, distractor)]
    style = rng.random()
    for _ in range(rng.randint(1, questions)):
        query = _training_query(rng, table if rng.random() < 0.6 else distractor)
        asked, sql = question(rng, query, "pretraining"), statement(query)
        if style < 0.7:
            lines.append(f"Q: {asked}\nA: {sql}")
        elif style < 0.85:
            lines.append(f"-- {asked}\n{sql};")
        else:
            lines.append(f"{asked}\n{sql}")
    return "\n".join(lines)


def pretraining_document(rng: Random) -> str:
    """A document of the base model's corpus: three quarters are about SQL."""
    return sql_document(rng) if rng.random() < 0.75 else general_document(rng)
