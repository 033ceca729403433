from __future__ import annotations

import subprocess
import sys
from typing import ClassVar

import pytest

from sah.data.config import DatasetConfig
from sah.data.discovery import dataset_configs, index_by_name
from sah.data.jsonl.config import JsonlConfig
from sah.data.niah.config import NiahConfig
from sah.errors import ConfigError


def test_data_sets_are_found_by_walking_the_package() -> None:
    found = dataset_configs()
    assert found["niah"] is NiahConfig
    assert found["jsonl"] is JsonlConfig
    assert all(issubclass(cls, DatasetConfig) for cls in found.values())
    assert list(found) == sorted(found)


def test_two_data_sets_of_one_name_are_refused() -> None:
    class Other(NiahConfig):
        name: ClassVar[str] = "niah"

    with pytest.raises(ConfigError, match=r"Two data sets are called 'niah': .*NiahConfig and .*Other"):
        index_by_name((NiahConfig, Other))


def test_a_data_set_without_a_name_is_refused() -> None:
    class Nameless(NiahConfig):
        name: ClassVar[str] = ""

    with pytest.raises(ConfigError, match=r"Nameless has no name"):
        index_by_name((Nameless,))


def test_discovery_imports_nothing_heavy() -> None:
    code = (
        "import sys; from sah.data.discovery import dataset_configs; dataset_configs(); "
        "heavy = {'torch', 'transformers', 'datasets', 'wonderwords', 'numpy'} & set(sys.modules); "
        "print(*sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_examples", 0, "dataset.num_examples=0"),
        ("num_examples", True, "dataset.num_examples=True"),
        ("metrics", [], r"dataset.metrics=\[\]"),
        ("metrics", "token_f1", "dataset.metrics='token_f1'"),
        ("metrics", ["token_f1", "token_f1"], r"Write for example: dataset.metrics=\[token_f1\]"),
    ],
)
def test_shared_fields_are_checked_when_assigned(field: str, value: object, message: str) -> None:
    config = NiahConfig()
    before = getattr(config, field)
    with pytest.raises(ConfigError, match=message):
        setattr(config, field, value)
    assert getattr(config, field) == before
