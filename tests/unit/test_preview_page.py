"""The page of a recipe's data: what it counts, finds and shows, in one file."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path
from random import Random

import pytest

from alignflow.commands.cli import exit_code_of
from alignflow.data import NEAR, KnownTexts
from alignflow.data.duplicates import jaccard, shingles_of
from alignflow.pipeline.plot import histogram
from alignflow.pipeline.preview_page import about, lengths_of

WORDS = ["depot", "truck", "glass", "Lyon", "late", "Porto", "pallet", "driver", "steel", "week"]
LONG = "how many pallets of glass went from Lyon to Porto in the week that Ada drove the red truck"
NOW = "name the depot of the northern line that stands closest to the river right now"


def rows_of(folder: Path) -> Path:
    """A recipe over rows with one of each kind."""
    rows = [
        {"prompt": "where is <b>Ada</b>?", "completion": "in Lyon & late"},
        {"prompt": LONG, "completion": "4"},
        {"prompt": f"  {LONG.upper()}", "completion": "5"},
        {"prompt": LONG.replace("red", "blue"), "completion": "6"},
        {"prompt": "x", "completion": ""},
        {"prompt": "long " * 300, "completion": "y"},
        {"prompt": NOW.replace("now", "today"), "completion": "Bergen"},
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "asked.jsonl").write_text(json.dumps({"prompt": NOW, "target": "Bergen"}))
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        "base_model: builtin:freight-base\n"
        f"data: {{sft: {folder}/rows.jsonl, evaluation: {folder}/asked.jsonl}}\n"
        "sft: {max_length: 192}\nevaluation: {metrics: [exact_match]}\n"
    )
    return recipe


def test_the_page_counts_finds_and_shows_and_needs_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "data.html"
    arguments = ["preview", str(rows_of(tmp_path)), "--html", str(page), "--part", "sft"]
    assert exit_code_of([*arguments, "--home", str(tmp_path / "home"), "--json"]) == 0
    counts = json.loads(capsys.readouterr().out)
    assert counts == {"page": str(page), "read": 7, "used": 5, "held_out": 0, "dropped": 2}
    text = page.read_text()
    assert not re.search(r"(src|href)=|url\(|@import|<script", text)
    assert "&lt;b&gt;Ada&lt;/b&gt;" in text and "<b>Ada" not in text
    assert "empty 1" in text and f"{tmp_path}/rows.jsonl:5: completion" in text
    assert "too_long 1" in text and "at most 192 tokens a row" in text
    assert "Rows with the prompt of an earlier one: 1; with one that is near: 1." in text
    assert "Rows with a prompt of the evaluation: 0; with one that is near: 1." in text
    assert text.count("<svg") == 2 and "prompts: median" in text and "responses: median" in text
    marked = re.findall(r'<span class="loss">(.*?)</span>', text)
    assert "".join(marked).startswith("in Lyon &amp; late&lt;|im_end|&gt;4&lt;|im_end|&gt;")


def test_near_texts_are_those_that_share_enough_pairs_of_words() -> None:
    random = Random(0)
    texts = [" ".join(random.choices(WORDS, k=24)) for _ in range(60)]
    texts += [text.replace("glass", "paper", 1) for text in texts[:40]] + [texts[3], "", "one"]
    expected = {
        later
        for earlier, later in combinations(range(len(texts)), 2)
        if jaccard(shingles_of(texts[earlier]), shingles_of(texts[later])) >= NEAR
    }
    known, found = KnownTexts(), set()
    for place, text in enumerate(texts):
        if like := known.like(text):
            found.add(place)
            assert (like.similarity == 1) == (texts[like.place] == text)
        known.add(text)
    assert found == expected and len(found) > 20


def test_words_in_another_order_are_another_text() -> None:
    known = KnownTexts()
    known.add("from lyon to porto by night")
    assert known.like("by night from porto to lyon") is None
    assert known.like("from lyon to porto by night") == (0, 1.0)


def test_lengths_are_those_of_prompts_and_of_each_response() -> None:
    assert lengths_of({"input_ids": [1] * 5, "completion_mask": [0, 0, 1, 1, 1]}) == ([2], [3])
    pair = {"prompt_ids": [1, 2], "chosen_ids": [3], "rejected_ids": [4, 5, 6]}
    assert lengths_of(pair) == ([2], [1, 3])
    assert lengths_of({"input_ids": [1, 2]}) == ([], [2])
    assert lengths_of({"text": "a"}) == ([], [])
    assert about(list(range(1, 101))) == "median 50.5, 95 % up to 96, longest 100 tokens"


def test_a_histogram_has_a_bar_for_each_range_that_has_values() -> None:
    drawn = histogram([0, 1, 1, 89])
    assert re.findall(r"<title>(.*?)</title>", drawn) == ["0 to 2: 3", "87 to 89: 1"]
    heights = [float(height) for height in re.findall(r' height="([\d.]+)"', drawn)]
    assert heights[0] == pytest.approx(3 * heights[1], abs=0.2)
    assert "<rect" not in histogram([])
