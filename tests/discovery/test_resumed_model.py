"""Methods that are stopped at any piece and begun again: equal scores, and nothing is computed twice."""

from __future__ import annotations

import pytest
import torch

from discovery.ablation import COUNTERFACTUAL
from discovery.methods import METHODS
from discovery.methods.exact import edge_effects
from discovery.model import PatchableModel
from discovery.resumed_model import Pieces, ResumedModel
from discovery.workload import Workload
from tests.discovery.method_conformance import QUICK
from tests.discovery.residual_model import LOGIT_DIFFERENCE, ResidualModel, token_batch

WORK = Workload(
    (token_batch([4, 5, 3], seed=1), token_batch([2, 4], seed=2, first=3), token_batch([3], seed=4)),
    LOGIT_DIFFERENCE,
    COUNTERFACTUAL,
)
REMEMBERED = [name for name, line in METHODS.items() if not (line.learned or line.resumes or name == "random")]


SETTINGS = {"exact": {"edges_per_run": 16}, "screen-verify": {"steps": 1, "edges": 24}}


class Stopped(Exception):
    """The process is killed."""


class Kept:
    """Pieces in memory; the process dies when it puts the n-th one."""

    def __init__(self) -> None:
        self.content: dict[bytes, bytes] = {}
        self.puts = 0
        self.dies_at: int | None = None

    def get(self, name: bytes) -> bytes | None:
        return self.content.get(name)

    def put(self, name: bytes, content: bytes) -> None:
        self.puts += 1
        if self.puts == self.dies_at:
            raise Stopped
        self.content[name] = content


def test_the_faces_fit() -> None:
    assert isinstance(Kept(), Pieces)
    model = ResumedModel(ResidualModel(), Kept())
    assert isinstance(model, PatchableModel)
    assert model.maps is model._model.maps  # what is not part of the protocol is the model's own
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = model.nothing_like_it


@pytest.mark.parametrize("name", REMEMBERED)
def test_a_method_that_is_stopped_anywhere_goes_on_and_gives_the_same(name: str) -> None:
    line, plain = METHODS[name], ResidualModel(linear=False)
    options = line.options(SETTINGS.get(name, QUICK.get(name, {})))

    def score(model: PatchableModel) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        batches: dict[int, torch.Tensor] = {}
        found = line.load().score(model, WORK, options, lambda number, scores: batches.update({number: scores.clone()}))
        return torch.from_numpy(found.values), batches

    expected, batches = score(plain)
    whole = Kept()
    score(ResumedModel(plain, whole))
    assert whole.puts == len(whole.content) >= len(WORK.batches)
    for at in sorted({1, whole.puts // 2, whole.puts}):
        kept = Kept()
        kept.dies_at = at
        with pytest.raises(Stopped):
            score(ResumedModel(plain, kept))
        kept.dies_at = None
        found, seen = score(ResumedModel(plain, kept))
        assert kept.puts == whole.puts + 1  # the piece that was lost alone is computed again
        torch.testing.assert_close(found, expected, equal_nan=True)
        assert seen.keys() == batches.keys()
        for number, scores in batches.items():
            torch.testing.assert_close(seen[number], scores)


def test_a_piece_is_that_of_its_batch_metric_masks_and_settings() -> None:
    model, kept = ResidualModel(linear=False), Kept()
    everything, some = model.topology.possible, model.topology.possible.copy()
    some[:2] = False
    for _ in range(2):
        for wanted in (everything, some):
            edge_effects(ResumedModel(model, kept), WORK, wanted)
    runs = kept.puts
    METHODS["eap"].load().score(ResumedModel(model, kept), WORK)
    METHODS["clean-corrupted"].load().score(ResumedModel(model, kept), WORK)
    METHODS["information-flow"].load().score(ResumedModel(model, kept), WORK)
    assert kept.puts - runs == 3 * len(WORK.batches)
    other = Workload((token_batch([4, 5, 3], seed=9),), LOGIT_DIFFERENCE, COUNTERFACTUAL)
    METHODS["eap"].load().score(ResumedModel(model, kept), other)
    assert kept.puts - runs == 3 * len(WORK.batches) + 1
