"""The skeleton of attacks: what is checked is checked once, and what only some can do is a type."""

import ast
import pickle
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntkrobust_sk
from ntkrobust_sk import APGD, DDN, FAB, FGSM, FMN, NFGSM, PGD, AutoAttack, Clean, SigmaZero, Square
from ntkrobust_sk.attacks import entry, skeleton
from ntkrobust_sk.attacks.capabilities import FindsNearest, GoesThroughTiles, InBall, Reports
from ntkrobust_sk.attacks.skeleton import Attack, Outcome
from ntkrobust_sk.attacks.tiled import attack_in_tiles

PACKAGE = Path(ntkrobust_sk.__file__).parent
KINDS = (PGD, FGSM, NFGSM, APGD, FAB, FMN, DDN, SigmaZero, Square, AutoAttack)
X = np.random.default_rng(0).uniform(size=(10, 4)).astype(np.float32)
MODEL = jax.tree_util.Partial(lambda x: x @ jnp.eye(4, 3))
Y = np.asarray(MODEL(X).argmax(1))
KEY = jax.random.key(0)


@dataclass(frozen=True)
class Brighter(Attack):
    """A new attack: one dataclass with one method."""

    epsilon: float
    norm: str = "linf"
    bounds: tuple | None = (0.0, 1.0)

    def _run(self, given):
        return Outcome(given.x + self.epsilon)


def test_a_new_attack_is_one_dataclass_with_one_method():
    attack = Brighter(np.float32(0.25), bounds=[0, 1])
    assert attack == Brighter(0.25) == pickle.loads(pickle.dumps(attack)) and hash(attack) == hash(Brighter(0.25))
    assert repr(attack) == "Brighter(epsilon=0.25, norm='linf', bounds=(0.0, 1.0))"
    np.testing.assert_allclose(attack(MODEL, X, Y, key=KEY), X + 0.25)
    found = attack_in_tiles(attack, MODEL, X, Y, key=KEY, rows=4)
    np.testing.assert_allclose(found, np.minimum(X + 0.25, 1), atol=1e-6)
    with pytest.raises(ValueError, match="epsilon must be a finite number >= 0"):
        Brighter(-1)
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.2"):
        attack(MODEL, X, Y + 3, key=KEY)


@pytest.mark.slow
@pytest.mark.parametrize(
    "attack", [PGD(0.1, 2), Square(0.1, 3), FMN(0.1, 2), AutoAttack(0.1, n_steps=2, n_queries=2)], ids=str
)
def test_inputs_are_checked_once_for_all_tiles_and_members(attack, monkeypatch):
    seen = []
    for name in ("given", "inputs_of", "check_targets"):
        for module in (skeleton, entry):
            if hasattr(module, name):
                plain = getattr(module, name)
                monkeypatch.setattr(
                    module, name, lambda *a, plain=plain, name=name, **k: seen.append(name) or plain(*a, **k)
                )
    attack_in_tiles(attack, MODEL, X, Y, key=KEY, rows=4)
    assert seen == ["check_targets"]


@pytest.mark.parametrize(
    "kind, able",
    [(FindsNearest, (FAB, FMN, DDN, SigmaZero)), (Reports, (AutoAttack,)), (GoesThroughTiles, (AutoAttack,))],
)
def test_what_only_some_can_do_is_a_type(kind, able):
    for attack in KINDS:
        assert isinstance(attack(0.1), kind) == (attack in able)
        assert isinstance(attack(0.1), InBall)
    assert not isinstance(Clean(), InBall | kind)


def test_no_attack_builds_another_one_but_the_ensemble_its_members():
    names, found = {kind.__name__ for kind in KINDS}, []
    for path in (PACKAGE / "attacks").glob("*.py"):
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef):
                calls = [node.func for node in ast.walk(function) if isinstance(node, ast.Call)]
                if names & {call.id for call in calls if isinstance(call, ast.Name)}:
                    found.append(function.name)
    assert found == ["members"]
