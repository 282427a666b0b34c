"""One round of each kind of disaster; `make endurance` has sixty, and twenty of gangs, with figures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from chaos import BOARD, GANG_BOARD, GANG_KINDS, GANG_POOLS, KINDS, MARK, Chaos


@pytest.fixture(scope="module")
def chaos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chaos]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(MARK, "")  # set anew by every round, and gone after them
        yield Chaos(tmp_path_factory.mktemp("chaos"), board=BOARD.replace("steps: 250", "steps: 120"), seed=3)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", KINDS)
def test_a_film_survives(kind: str, chaos: Chaos, tmp_path: Path) -> None:
    done = chaos.round(kind, KINDS.index(kind))
    assert not done.faults, done


@pytest.fixture(scope="module")
def gang_chaos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chaos]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(MARK, "")
        board = GANG_BOARD.replace("steps: 120", "steps: 40").partition("  - {id: two")[0]
        yield Chaos(tmp_path_factory.mktemp("gangs"), board=board, pools=GANG_POOLS, seed=5)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("number", range(2))
def test_a_film_of_gangs_survives(number: int, gang_chaos: Chaos, tmp_path: Path) -> None:
    done = gang_chaos.round(GANG_KINDS[number % 2], number)
    assert not done.faults, done
