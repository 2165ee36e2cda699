"""The contract of attacks, ours and users' own: what they declare, take and give back."""

import dataclasses

import pytest

from ntkrobust_sk import APGD, DDN, FAB, FGSM, FMN, PGD, AutoAttack, Square
from ntkrobust_sk.attacks import NFGSM, Clean

OURS = [Clean(), *(kind(0.1) for kind in (PGD, FGSM, NFGSM, APGD, FAB, FMN, DDN, Square, AutoAttack))]


@pytest.mark.parametrize("attack", OURS, ids=lambda attack: type(attack).__name__)
def test_attacks_declare_what_they_need_and_it_is_no_field(attack):
    assert attack.needs_gradients == (not isinstance(attack, Clean | Square))
    assert attack.one_key_each
    assert {"one_key_each", "needs_gradients"}.isdisjoint(field.name for field in dataclasses.fields(attack))
