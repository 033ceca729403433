"""Searches with Optuna: the presets, what a trial returns, what a repeated one costs, and how they end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from tests.integration.conftest import Work
from tests.integration.running import Outcome, jobs, lines, run, stored

pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")

# The tiny model scores 0 throughout; density and bytes pull against each other whatever the model.
REAL_TRADE = ["objectives=[density,bytes]", "hydra.sweeper.direction=[minimize,minimize]"]
ONE = ["-m", "hydra/sweeper=optuna", "hydra.sweeper.sampler.seed=0"]


def search(*given: str, trials: int = 6) -> Outcome:
    """Run the preset's search, short."""
    return run("+experiment=search_density", f"hydra.sweeper.n_trials={trials}", "hydra.sweeper.n_jobs=3", *given)


def left_behind() -> tuple[dict[str, Any], dict[str, Any]]:
    """What Optuna's sweeper and we wrote at the end of the newest search."""
    folder = max(Path("outputs/sweeps").glob("*/*"), key=lambda path: path.stat().st_mtime_ns)
    pareto = json.loads((folder / "pareto.json").read_text(encoding="utf-8"))
    theirs: Any = OmegaConf.to_container(OmegaConf.load(folder / "optimization_results.yaml"))
    assert "Pareto set" in (folder / "pareto.md").read_text(encoding="utf-8")
    assert (folder / "table.md").is_file()
    return theirs, pareto


def same_set(theirs: dict[str, Any], pareto: dict[str, Any]) -> set[tuple[float, ...]]:
    """Check that both found the same values, and give them."""
    optuna = {tuple(solution["values"]) for solution in theirs["solutions"]}
    assert optuna == {tuple(point["values"].values()) for point in pareto["front"]}
    return optuna


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["grouped", "basic"])
def test_the_set_is_the_one_that_optuna_finds(launcher: str, work: Work) -> None:
    done = search(*REAL_TRADE, f"hydra/launcher={launcher}", trials=9)
    assert done.code == 0, done.text
    theirs, pareto = left_behind()
    front = same_set(theirs, pareto)
    assert len(front) > 1 and pareto["dominated"], "the trials must have a set that is neither one point nor all"
    assert pareto["objectives"] == {"density": "minimize", "bytes": "minimize"}
    assert sum(point["jobs"] for point in pareto["front"] + pareto["dominated"]) == 9
    assert f"Pareto set of density (minimize), bytes (minimize): {len(pareto['front'])} of" in done.out
    assert len(work.prefills) == 2, "all trials share the contexts"
    for record in jobs():
        metrics = json.loads((Path(record["folder"]) / "metrics.json").read_text(encoding="utf-8"))
        assert record["objectives"] == {
            "density": metrics["sparse"]["measures"]["density_measured"],
            "bytes": metrics["sparse"]["decode_kv_bytes"],
        }
    rows = sum(len(lines(point)) for point in stored().values())
    work.clear()
    again = search(*REAL_TRADE, f"hydra/launcher={launcher}", trials=9)
    assert again.code == 0, again.text
    assert same_set(*left_behind()) == front
    assert work.counts == (0, 0, 0) and sum(len(lines(point)) for point in stored().values()) == rows


def test_the_bytes_preset_and_a_trial_tried_twice() -> None:
    done = run("+experiment=search_bytes", "masker=quest", "density=0.05,0.1", "hydra.sweeper.n_trials=4")
    assert done.code == 0, done.text
    theirs, pareto = left_behind()
    same_set(theirs, pareto)
    assert list(pareto["objectives"]) == ["score", "bytes"]
    quest = [point for point in stored().values() if point.label == "quest"]
    assert sum(point["jobs"] for point in pareto["front"] + pareto["dominated"]) == 4
    assert len(quest) == len(pareto["front"] + pareto["dominated"])
    for point in quest:
        assert point.metrics is not None
        assert 0 < point.metrics["sparse"]["decode_kv_bytes"] < point.metrics["dense"]["decode_kv_bytes"]


def test_a_trial_that_fails_ends_nothing() -> None:
    axes = ["masker=topk", "density=0.1,2", "hydra/sweeper/sampler=random", "hydra.sweeper.sampler.seed=1"]
    done = search(*axes, "hydra/launcher=basic", trials=4)
    assert done.code == 1
    states = [record["status"] for record in jobs()]
    assert len(states) == 4 and set(states) == {"ok", "failed"}
    assert "density=2 is not allowed" in done.text and "Traceback" not in done.text
    theirs, pareto = left_behind()
    same_set(theirs, pareto)
    assert sum(point["jobs"] for point in pareto["front"]) == states.count("ok")


def test_one_objective_is_one_number() -> None:
    given = ["objectives=[density]", "hydra.sweeper.direction=minimize", "hydra.sweeper.n_trials=3", "masker=topk"]
    done = run(*ONE, *given, "density=0.05,0.1,0.2")
    assert done.code == 0, done.text
    (results,) = Path("outputs/sweeps").glob("*/*/optimization_results.yaml")
    best: Any = OmegaConf.to_container(OmegaConf.load(results))
    assert best["best_value"] == min(record["objectives"]["density"] for record in jobs())
    assert not list(results.parent.glob("pareto.*"))


def test_a_search_in_which_every_trial_fails_says_so() -> None:
    given = ["hydra.sweeper.direction=maximize", "hydra.sweeper.n_trials=2", "hydra/launcher=basic"]
    done = run(*ONE, *given, "masker=topk", "density=2,3")
    assert done.code == 1
    assert "No point of the search finished" in done.text and "Traceback" not in done.text
    assert " is not allowed. Allowed: a number above 0" in done.text


def test_a_search_in_the_wrong_direction_is_refused(work: Work) -> None:
    done = run(*ONE, "masker=topk", "density=0.05,0.1")
    assert done.code == 1
    assert "hydra.sweeper.direction='minimize' is not allowed" in done.text
    assert work.counts == (0, 0, 0) and not jobs()


PLUGINS = {
    "+experiment=search_bytes": ("hydra/sweeper=optuna", "hydra-optuna-sweeper", "search"),
    "hydra/sweeper=optuna": ("hydra/sweeper=optuna", "hydra-optuna-sweeper", "search"),
    "hydra/launcher=ray": ("hydra/launcher=ray", "hydra-ray-launcher", "ray"),
    "hydra/launcher=submitit_slurm": ("hydra/launcher=submitit_slurm", "hydra-submitit-launcher", "slurm"),
    "hydra/launcher=submitit_local": ("hydra/launcher=submitit_local", "hydra-submitit-launcher", "slurm"),
    "hydra/launcher=joblib": ("hydra/launcher=joblib", "hydra-joblib-launcher", "joblib"),
}

WITHOUT_PLUGINS = """
import sys
sys.modules["hydra_plugins"] = None
from hydra.core.global_hydra import GlobalHydra
from sah.run import main
for given in sys.argv[1:]:
    sys.argv = ["sah", "-m", given]
    GlobalHydra.instance().clear()
    try:
        main()
    except SystemExit as ended:
        print(ended.code, file=sys.stderr)
"""


def test_a_missing_extra_is_named() -> None:
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", WITHOUT_PLUGINS, *PLUGINS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env={"PYTHONPATH": str(root)})
    expected = [
        line
        for chosen, package, extra in PLUGINS.values()
        for line in (
            f"{chosen} needs the package {package!r}, which is not installed. Run: pip install 'sah[{extra}]'",
            "1",
        )
    ]
    assert done.stderr.splitlines() == expected
