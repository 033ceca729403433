"""`sah validate`: all mistakes at once, and what would run. Nothing heavy is imported."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.unit.test_architecture import HEAVY

ROOT = Path(__file__).resolve().parents[3]


def mistakes(out: str) -> list[str]:
    """Take the numbered mistakes of the output, with the line that says where."""
    found: list[str] = []
    for line in out.splitlines()[1:]:
        number, _, text = line.strip().partition(". ")
        if number.isdigit():
            found.append(text)
        elif line.startswith("     "):
            found[-1] += f" | {line.strip()}"
    return found


def test_a_right_point(sah):
    code, out, err = sah("validate", "masker=topk", "density=0.2")
    assert (code, err) == (0, "")
    assert out.startswith("Right: 1 point.\n")
    assert "recipes        topk\n" in out and "densities      0.2\n" in out
    assert "Run it:   python -m sah.run masker=topk density=0.2\n" in out


def test_several_wrong_keys_values_and_choices_at_once(sah):
    code, out, _ = sah(
        "validate",
        "masker=topkk",
        "masker.topk.heavy_sise=3",
        "modl=x",
        "dataset.lenth=3",
        "density=7",
        "seed=-1",
        "+expriment=smoke",
        "model=[llama",
    )
    assert code == 1
    assert out.startswith("8 mistakes:\n")
    found = mistakes(out)
    for place, expected in enumerate(
        (
            "model: this argument cannot be read",
            "masker='topkk' is not allowed. Allowed: adaptive, causal",
            "masker.topk.heavy_sise is not a key of masker.topk",
            "modl is not a key of the config",
            "dataset.lenth is not a key of dataset",
            "expriment is not a key of the config",
            "density=7 is not allowed",
            "seed=-1 is not allowed",
        )
    ):
        assert found[place].startswith(expected)
    assert found[1].endswith("Write for example: masker=topk")
    assert found[4].endswith("Write for example: dataset.length=...")
    assert found[5].endswith("Write for example: +experiment=smoke")


def test_each_wrong_entry_of_a_list(sah):
    found = mistakes(sah("validate", "masker=[sink,locl,topkk,xyz]", "masker.local.size=3", "masker.xyz.a=1")[1])
    assert [text.partition(" ")[0] for text in found] == [
        "masker='xyz'",
        "masker='topkk'",
        "masker='locl'",
        "masker.local.size",
    ]


def test_a_choice_that_is_like_no_other_is_left_out(sah):
    found = mistakes(sah("validate", "model=zzz", "dataset=niah", "density=0")[1])
    assert len(found) == 2
    assert found[0].startswith("model='zzz' is not allowed")


def test_a_sweep_names_the_points_of_each_mistake(sah):
    code, out, _ = sah("validate", "-m", "masker=topk,qest", "density=0.1,3", "hydra.launcher.workers=0", "hydra.foo=1")
    assert code == 1
    found = mistakes(out)
    assert found[0].startswith("hydra.foo is not a key of hydra")
    assert found[1].startswith("hydra.launcher.workers=0 is not allowed")
    assert "density=3 is not allowed" in found[2] and "| In 2 points: 1 (masker=topk density=3), 3 (" in found[2]
    assert "masker='qest' is not allowed" in found[3] and "| In 2 points: 2 (masker=qest density=0.1), 3" in found[3]
    assert out.endswith("1 of 4 points are right.\n")


def test_a_sweep_counts_equal_points_once(sah):
    _, out, _ = sah("validate", "-m", "masker=topk,dense", "density=0.1,0.2")
    assert out.startswith("Right: 4 points, 1 of them equal to another one and run once.")


def test_several_values_without_m(sah):
    code, out, _ = sah("validate", "masker=topk,random", "density=0.1,5")
    assert code == 1
    found = mistakes(out)
    assert found[0].startswith("masker=topk,random: several values make a sweep, which needs -m.")
    assert found[1].startswith("density=0.1,5: several values make a sweep")
    assert found[2].startswith("density=5 is not allowed")


@pytest.mark.slow
def test_presets(sah, tmp_path):
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text(
        "# @package _global_\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n"
        "      masker: topk,quest\n      density: 0.1,0.2,0.3\n"
    )
    given = ["+experiment=mine", "--config-dir", tmp_path / "conf"]
    assert sah("validate", *given)[1].startswith("Right: 6 points.")
    assert sah("validate", *given, "density=0.5")[1].startswith("Right: 2 points.")
    assert sah("validate", "+experiment=smoke", "masker=quest")[1].startswith("Right: 1 point.")
    found = mistakes(sah("validate", "+experiment=density_cuve", "density=0")[1])
    assert found[0].startswith("+experiment='density_cuve' is not allowed")
    assert any("density=0 is not allowed" in text for text in found[1:]) or len(found) == 1


@pytest.mark.slow
def test_presets_of_searches_check_every_value_of_every_axis(sah):
    code, out, _ = sah("validate", "+experiment=search_density")
    assert code == 0
    assert out.startswith("Right: a search of up to 20 trials;")
    code, out, _ = sah("validate", "+experiment=search_density", 'search.quest.page_size="8,0"', "objectives=[score]")
    assert code == 1
    found = " ".join(mistakes(out))
    assert "page_size=0 is not allowed" in found
    assert "hydra.sweeper.direction" in found


def test_intervals_need_a_search(sah):
    found = mistakes(sah("validate", "-m", "density=interval(0.1,0.2)")[1])
    assert found[0].startswith("density=interval(0.1,0.2): a grid takes single values, no interval.")


def test_hydras_own_settings_take_one_value(sah):
    found = mistakes(sah("validate", "-m", "hydra.launcher.workers=1,2")[1])
    assert found[0].startswith("hydra.launcher.workers=1,2: Hydra's own settings take one value each")


@pytest.mark.parametrize(
    "expected",
    [
        {
            "dataset=jsonl": "",
            "dataset.path=no.jsonl": "dataset.path=no.jsonl does not exist (looked for ",
            "model.name=embedded:gpt": "model.name='embedded:gpt' is not known. Allowed: embedded:gemma3-270m",
        },
        {
            "masker=[topk,topk]": "masker: topk stands more than once",
            "model=[llama,tiny]": "model='llama,tiny' is not allowed. Allowed: one name",
            "+density=0.1": "Could not append to config. An item is already at 'density'.",
            "~densty": "Could not delete from config. 'densty' does not exist.",
            "masker.quest.page_size=8": "masker.quest.page_size is set, but the recipe has no masker 'quest'",
            "wandb.mode=loud": "wandb.mode='loud' is not allowed",
        },
        {
            "masker=[topk,random]": "masker: topk and random both read the top-level density",
            "tracker=null": "tracker=None is not allowed",
            "hydra/launcher=grupd": "hydra/launcher='grupd' is not allowed",
        },
        {
            "masker=null": "masker=None is not allowed",
            "model.name=./nowhere": "model.name='./nowhere': there is no such",
        },
    ],
    ids=["files", "kinds", "recipe", "null"],
)
def test_each_mistake_is_told_in_its_words(sah, expected):
    code, out, _ = sah("validate", *expected)
    assert code == 1
    found = mistakes(out)
    for text in filter(None, expected.values()):
        assert any(mistake.startswith(text) for mistake in found), out
    assert len(found) == len(list(filter(None, expected.values()))), out


@pytest.mark.slow
def test_own_groups(sah, tmp_path):
    (tmp_path / "conf" / "masker").mkdir(parents=True)
    target = "sah.sparse_attention.maskers.topk_config.TopKMaskerConfig"
    (tmp_path / "conf" / "masker" / "mine.yaml").write_text(f"mine:\n  _target_: {target}\n  heavy_size: 3\n")
    assert sah("validate", "masker=mine", "--config-dir", tmp_path / "conf")[0] == 0
    assert sah("validate", "masker=mine")[0] == 1
    code, _, err = sah("validate", "--config-dir", "nowhere")
    assert code == 1
    assert "--config-dir nowhere is no folder" in err


def test_json(sah):
    code, out, _ = sah("validate", "-m", "masker=topk,quest", "density=0.1,0", "--json")
    told = json.loads(out)
    assert code == 1
    assert (told["ok"], told["points"], told["different"]) == (False, 4, 2)
    assert len(told["mistakes"]) == 1 and told["recipes"] == ["topk", "quest"]


@pytest.mark.slow
def test_nothing_heavy_is_imported_and_nothing_written(tmp_path):
    code = (
        "import sys\nfrom sah.terminal.command import run\n"
        "code = run('validate', ['-m', 'masker=topk,qest', 'density=0.1,0.2', 'model=llama'])\n"
        f"print(code, sorted({HEAVY - {'numpy', 'scipy'}!r} & set(sys.modules)))"
    )
    seconds = []
    for _ in range(2):
        begun = time.perf_counter()
        command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        seconds.append(time.perf_counter() - begun)
    assert done.stdout.splitlines()[-1] == "1 []", done.stderr
    assert list(tmp_path.iterdir()) == []
    assert min(seconds) < 5.0
