"""Claims: each holds, does not hold or is not tested as the numbers of a made-up run say."""

from types import SimpleNamespace

import numpy as np
import pytest

from ntkrobust_sk.evolution import claims
from ntkrobust_sk.evolution.claims import FAILS, HOLDS, UNTESTED, check_claims

EPOCHS = 4
BOTH = ("benign", "adversarial")
ALL = (*BOTH, "flip")
each_of_both = pytest.mark.parametrize("missing", BOTH)


class MadeUp:
    """What claims ask of a run's results, from plain dicts; a kernel is a point of the plane."""

    def __init__(
        self, seeds=2, epochs=EPOCHS, n_test=200, checkpoints=(), others=(), points=None, velocities=None
    ):
        self.experiment = SimpleNamespace(seeds=seeds, epochs=epochs, n_test=n_test)
        self.results = [{"kind": "checkpoint", "n_test": n_test, **result} for result in checkpoints] + list(
            others
        )
        self.path = "made up"
        self.points, self.velocities = points or {}, velocities or {}

    def of_kind(self, kind, **where):
        found = (result for result in self.results if result["kind"] == kind)
        return [result for result in found if all(result[name] == value for name, value in where.items())]

    def epochs(self, seed, regime):
        own = [result["epoch"] for result in self.of_kind("checkpoint", seed=seed, regime=regime)]
        if regime != "flip" or not own:
            return own
        return [epoch for epoch in self.epochs(seed, "benign") if epoch < own[0]] + own

    def at(self, seed, regime, epoch):
        (found,) = self.of_kind("checkpoint", seed=seed, regime=regime, epoch=epoch)
        return found

    def distances(self, states):
        points = np.array([self.points[state] for state in states], float)
        return np.linalg.norm(points[:, None] - points, axis=2)

    def velocity(self, seed, regime, images="clean"):
        epochs = np.array(self.epochs(seed, regime))
        return (epochs[1:] + epochs[:-1]) / 2, np.array(self.velocities[seed, regime], float)


def measured(regimes=BOTH, seeds=2, epochs=EPOCHS, **values):
    """Checkpoints at all whole epochs; values are a number, or say it from seed and regime."""
    return [
        {"seed": seed, "regime": regime, "epoch": float(epoch)}
        | {name: value(seed, regime) if callable(value) else value for name, value in values.items()}
        for seed in range(seeds)
        for regime in regimes
        for epoch in range(3 if regime == "flip" else 0, epochs + 1)
    ]


def second(seed, regime, robust, *, dynamics="linearized", training="benign", epoch=4.0, strong=0.0):
    found = {"kind": "stage 2", "seed": seed, "regime": regime, "epoch": epoch, "dynamics": dynamics}
    return found | {"training": training, "robust": robust, "robust_restarts": strong}


def closed(seed, regime, robust, epoch=4.0):
    return {"kind": "closed form", "seed": seed, "regime": regime, "epoch": epoch, "robust": robust}


def without(result, regime):
    result.results = [found for found in result.results if found.get("regime") != regime]
    return result


def assert_untested(claim, needs):
    assert claim.verdict == UNTESTED and claim.values == {} and needs in claim.measured


# All of them


def test_every_claim_is_answered_once_in_the_order_of_the_list():
    found = check_claims(MadeUp())
    assert [claim.number for claim in found] == ["1a", "1b", "2", "3", "4", "5a", "5b", "5c", "6", "7"]
    assert len({claim.text for claim in found}) == len(found)


def test_without_any_result_nothing_is_tested_and_each_claim_says_what_it_needs():
    for claim in check_claims(MadeUp()):
        assert_untested(claim, "needs")


def test_a_run_of_which_only_checkpoints_are_there_has_stage_two_untested():
    result = MadeUp(
        checkpoints=measured(ALL, robust=0.5, clean_effective_rank=10.0, specialization=0.1),
        points={
            (seed, regime, float(epoch)): (ALL.index(regime) * epoch, seed)
            for seed in range(2)
            for regime in ALL
            for epoch in range(EPOCHS + 1)
        },
        velocities={(seed, regime): [6, 3, 2, 1] for seed in range(2) for regime in ALL},
    )
    verdicts = {claim.number: claim.verdict for claim in check_claims(result)}
    assert {number for number, verdict in verdicts.items() if verdict == UNTESTED} == {"2", "3", "5c", "6"}


@pytest.mark.parametrize("fraction, seeds", [(1, 2), (0.5, 1), (0, 0)], ids=["finished", "half", "not begun"])
def test_a_seed_that_is_not_finished_does_not_count(fraction, seeds):
    checkpoints = measured(seeds=2, clean_effective_rank=lambda seed, regime: 2.0 if regime == "benign" else 3.0)
    finished = [c for c in checkpoints if c["seed"] < 2 * fraction or c["epoch"] < EPOCHS]
    claim = claims.ranks_differ(MadeUp(checkpoints=finished))
    assert len(claim.values.get("benign", [])) == seeds
    assert claim.verdict == (HOLDS if seeds else UNTESTED)


def test_a_seed_that_was_stopped_early_counts_with_its_last_epoch():
    checkpoints = measured(
        seeds=1, epochs=2, clean_effective_rank=lambda seed, regime: 2.0 if regime == "benign" else 3.0
    )
    stopped = [{"kind": "stopped", "seed": 0, "regime": regime, "epoch": 3.0, "best": 1.0} for regime in BOTH]
    assert claims.ranks_differ(MadeUp(seeds=1, checkpoints=checkpoints)).verdict == UNTESTED
    assert claims.ranks_differ(MadeUp(seeds=1, checkpoints=checkpoints, others=stopped)).verdict == HOLDS


# 1a: kernels of the regimes differ by more than those of seeds


def ends(gap, between_seeds, seeds=2):
    """Last kernels: regimes ``gap`` apart, seeds of one ``between_seeds`` from one to the next."""
    points = {
        (seed, regime, 4.0): (BOTH.index(regime) * gap, seed * between_seeds)
        for seed in range(seeds)
        for regime in BOTH
    }
    return MadeUp(seeds, checkpoints=measured(seeds=seeds), points=points)


@pytest.mark.parametrize(
    "gap, between_seeds, verdict", [(1.0, 0.4, HOLDS), (1.0, 1.0, FAILS), (0.4, 1.0, FAILS)], ids=str
)
def test_kernels_differ_if_all_regimes_are_farther_apart_than_any_two_seeds(gap, between_seeds, verdict):
    claim = claims.kernels_differ(ends(gap, between_seeds))
    assert claim.verdict == verdict
    assert min(claim.values["across"]) == pytest.approx(gap)
    assert claim.values["within"] == pytest.approx([between_seeds, between_seeds])
    assert f"between regimes {gap:.3f}" in claim.measured


def test_kernels_of_all_pairs_of_seeds_are_compared():
    claim = claims.kernels_differ(ends(1.0, 0.4, seeds=3))
    assert len(claim.values["across"]) == 9 and sorted(claim.values["within"]) == pytest.approx(
        [0.4] * 4 + [0.8] * 2
    )
    assert claim.verdict == HOLDS
    assert claims.kernels_differ(ends(1.0, 0.6, seeds=3)).verdict == FAILS


def test_with_one_seed_it_is_not_known_whether_kernels_differ():
    assert_untested(claims.kernels_differ(ends(1.0, 0.4, seeds=1)), "two seeds")


@each_of_both
def test_with_one_regime_it_is_not_known_whether_kernels_differ(missing):
    assert_untested(claims.kernels_differ(without(ends(1.0, 0.4), missing)), "both regimes")


# 1b: most of the distance is there early


def paths(shares, epochs=EPOCHS):
    """The regimes part by each seed's share after a quarter, and by 1 at the end."""
    points = {}
    for seed, share in enumerate(shares):
        for epoch in range(epochs + 1):
            points[seed, "benign", float(epoch)] = (0, 0)
            # far away at all other epochs, which must not count
            points[seed, "adversarial", float(epoch)] = (0, {epochs / 4: share, epochs: 1}.get(epoch, 100))
    return MadeUp(len(shares), epochs, checkpoints=measured(seeds=len(shares), epochs=epochs), points=points)


@pytest.mark.parametrize(
    "shares, verdict",
    [([0.5], HOLDS), ([0.49], FAILS), ([0.9, 0.7], HOLDS), ([0.9, 0.4], FAILS), ([1.3], HOLDS)],
    ids=str,
)
@pytest.mark.parametrize("epochs", [4, 8])
def test_kernels_part_early_if_half_of_the_distance_is_there_after_a_quarter(shares, verdict, epochs):
    claim = claims.kernels_part_early(paths(shares, epochs))
    assert claim.verdict == verdict and claim.values["share"] == pytest.approx(shares)


def test_a_quarter_is_the_nearest_epoch_that_both_regimes_were_measured_at():
    result = paths([0.7], epochs=8)
    result.results = [
        r for r in result.results if r["regime"] == "adversarial" or r["epoch"] not in (1.0, 2.0, 3.0)
    ]
    result.points[0, "adversarial", 0.0] = (0, 0.2)
    assert claims.kernels_part_early(result).values["share"] == pytest.approx([0.2])


def test_three_epochs_have_no_quarter():
    assert_untested(claims.kernels_part_early(paths([0.9], epochs=3)), "four epochs")


@each_of_both
def test_with_one_regime_nothing_parts(missing):
    assert_untested(claims.kernels_part_early(without(paths([0.9]), missing)), "both regimes")


# 2: the adversarial kernel gives robustness; two standard errors of 200 test examples are 0.1

KINDS = ("linearized", "centered", "closed form")


def alike(*gains):
    """The same gains for all kinds."""
    return {kind: list(gains) for kind in KINDS}


def benign_seconds(gains, n_test=200):
    """Benign stage 2: for each kind a gain in robust accuracy for each seed."""
    seeds, others = max(map(len, gains.values())), []
    for kind, values in gains.items():
        for seed, gain in enumerate(values):
            for regime, robust in (("benign", 0.25), ("adversarial", 0.25 + gain)):
                made = closed(seed, regime, robust)
                others.append(made if kind == "closed form" else second(seed, regime, robust, dynamics=kind))
    return MadeUp(seeds, n_test=n_test, checkpoints=measured(seeds=seeds), others=others)


@pytest.mark.parametrize(
    "gains, verdict",
    [
        (alike(0.125), HOLDS),
        (alike(0.0625), FAILS),
        (alike(0.125, 0.25), HOLDS),
        (alike(0.25, 0.0), FAILS),
        ({"linearized": [0.5], "centered": [0.5], "closed form": [0.0625]}, FAILS),
        ({"linearized": [-0.125], "centered": [0.5]}, FAILS),
        ({"closed form": [0.5]}, HOLDS),
    ],
    ids=str,
)
def test_the_kernel_gives_robustness_if_every_kind_gains_more_than_two_standard_errors(gains, verdict):
    claim = claims.kernel_gives_robustness(benign_seconds(gains))
    assert claim.verdict == verdict and claim.values == gains
    assert "two standard errors: 0.100" in claim.measured


def test_more_test_examples_make_a_smaller_gain_enough():
    gains = alike(0.0625)
    assert claims.kernel_gives_robustness(benign_seconds(gains, n_test=500)).verdict == FAILS
    assert claims.kernel_gives_robustness(benign_seconds(gains, n_test=600)).verdict == HOLDS


def test_stage_two_counts_by_its_latest_start_and_adversarial_stage_two_does_not_count():
    result = benign_seconds(alike(0.125))
    result.results += [second(0, "adversarial", 0.0, epoch=2.0), closed(0, "adversarial", 0.0, epoch=2.0)]
    result.results += [second(0, regime, 1.0, training="adversarial") for regime in BOTH]
    claim = claims.kernel_gives_robustness(result)
    assert claim.values == alike(0.125) and claim.verdict == HOLDS


@each_of_both
def test_stage_two_of_one_regime_compares_with_nothing(missing):
    result = benign_seconds(alike(0.5))
    result.results = [r for r in result.results if r["kind"] == "checkpoint" or r["regime"] != missing]
    assert_untested(claims.kernel_gives_robustness(result), "benign stage 2 from both regimes")


# 3: adversarial training on the frozen kernel is enough


def frozen(gains, dynamics=("linearized", "centered")):
    """Adversarial stage 2 from the adversarial kernel; the last of its dynamics is the better one."""
    seeds = len(gains)
    others = [
        second(seed, "adversarial", robust, dynamics=kind, training="adversarial", strong=robust / 2)
        for seed, gain in enumerate(gains)
        for kind, robust in zip(dynamics[::-1], (0.5 + gain, 0.125), strict=False)
    ]
    return MadeUp(seeds, checkpoints=measured(seeds=seeds, robust=0.5), others=others)


@pytest.mark.parametrize(
    "gains, verdict",
    [([0.0], HOLDS), ([0.25], HOLDS), ([-0.25], FAILS), ([0.25, 0.0], HOLDS), ([0.25, -0.125], FAILS)],
    ids=str,
)
@pytest.mark.parametrize("dynamics", [("linearized", "centered"), ("centered", "linearized"), ("centered",)])
def test_the_frozen_kernel_is_enough_if_its_better_training_loses_nothing(gains, verdict, dynamics):
    claim = claims.frozen_kernel_is_enough(frozen(gains, dynamics))
    assert claim.verdict == verdict
    assert claim.values == {"gain": gains, "strong": [(0.5 + gain) / 2 for gain in gains]}


def test_the_frozen_kernel_needs_no_benign_network():
    assert claims.frozen_kernel_is_enough(without(frozen([0.25]), "benign")).verdict == HOLDS


def test_benign_stage_two_standard_dynamics_and_benign_kernels_say_nothing_about_the_frozen_kernel():
    result = MadeUp(1, checkpoints=measured(seeds=1, robust=0.5))
    result.results += [
        second(0, "adversarial", 1.0),
        second(0, "adversarial", 1.0, dynamics="standard", training="adversarial"),
        second(0, "benign", 1.0, training="adversarial"),
    ]
    assert_untested(claims.frozen_kernel_is_enough(result), "adversarial stage 2 from the adversarial kernel")


def test_without_the_adversarial_network_the_frozen_kernel_is_compared_with_nothing():
    result = frozen([0.25])
    result.results = [r for r in result.results if r["kind"] == "stage 2"]
    assert_untested(claims.frozen_kernel_is_enough(result), "adversarial stage 2")


# 4: kernels slow down


def moving(velocities, epochs=EPOCHS, seeds=1):
    """Velocities in each epoch, by regime, or by seed and regime."""
    given = {key if isinstance(key, tuple) else (0, key): value for key, value in velocities.items()}
    regimes = tuple({regime: None for _, regime in given})
    return MadeUp(seeds, epochs, checkpoints=measured(regimes, seeds, epochs), velocities=given)


@pytest.mark.parametrize(
    "benign, adversarial, verdict, ratios",
    [
        ([6, 9, 9, 1], [8, 0, 0, 1], HOLDS, (6, 8)),
        ([5, 9, 9, 1], [8, 0, 0, 1], FAILS, (5, 8)),
        ([6, 9, 9, 1], [1, 0, 0, 2], FAILS, (6, 0.5)),
        ([9, 3, 50, 50, 50, 50, 1, 1], [8, 8, 0, 0, 0, 0, 2, 0], HOLDS, (6, 8)),
    ],
)
def test_kernels_slow_down_if_the_first_quarter_is_more_than_five_times_as_fast_as_the_last(
    benign, adversarial, verdict, ratios
):
    claim = claims.kernels_slow_down(moving({"benign": benign, "adversarial": adversarial}, len(benign)))
    assert claim.verdict == verdict
    assert claim.values == {"benign": [ratios[0]], "adversarial": [ratios[1]]}


def test_short_intervals_count_by_their_length():
    result = moving({"benign": [8, 6, 9, 9, 1], "adversarial": [9, 1, 1, 1]})
    result.results.append({"kind": "checkpoint", "seed": 0, "regime": "benign", "epoch": 0.25})
    result.results.sort(key=lambda found: found["epoch"])
    assert claims.kernels_slow_down(result).values == {"benign": [0.25 * 8 + 0.75 * 6], "adversarial": [9]}


def test_a_constant_velocity_has_the_ratio_one_whatever_the_intervals():
    ones = [1] * EPOCHS
    assert claims.kernels_slow_down(moving({"benign": ones, "adversarial": ones})).values["benign"] == [1]
    assert_untested(claims.kernels_slow_down(moving({"benign": ones})), "both regimes")


def test_one_seed_that_does_not_slow_down_is_enough_to_contradict():
    velocities = {(seed, regime): [8, 2, 2, 1] for seed in range(2) for regime in BOTH}
    assert claims.kernels_slow_down(moving(velocities, seeds=2)).verdict == HOLDS
    claim = claims.kernels_slow_down(moving(velocities | {(1, "adversarial"): [4, 2, 2, 1]}, seeds=2))
    assert claim.verdict == FAILS and claim.values == {"benign": [8, 8], "adversarial": [8, 4]}


def test_three_epochs_are_too_few_to_slow_down():
    assert_untested(claims.kernels_slow_down(moving({"benign": [9, 1, 1]}, 3)), "four epochs")


# 5a and 5b: the last kernels compared

COMPARED = {"clean_effective_rank": claims.ranks_differ, "specialization": claims.kernels_specialize}


@pytest.mark.parametrize("name", COMPARED)
@pytest.mark.parametrize(
    "benign, adversarial, verdict",
    [
        ([10.0], [12.5], HOLDS),
        ([10.0], [10.0], FAILS),
        ([10.0], [7.5], FAILS),
        ([10.0, 20.0], [12.5, 22.5], HOLDS),
        ([10.0, 20.0], [30.0, 17.5], FAILS),
    ],
    ids=str,
)
def test_last_kernels_are_compared_within_each_seed(name, benign, adversarial, verdict):
    values = {"benign": benign, "adversarial": adversarial}
    checkpoints = measured(seeds=len(benign), **{name: lambda seed, regime: values[regime][seed]})
    for found in checkpoints:
        # kernels before the last must not count
        if found["epoch"] < EPOCHS:
            found[name] = 1e6 if found["regime"] == "benign" else 0.0
    claim = COMPARED[name](MadeUp(len(benign), checkpoints=checkpoints))
    assert claim.verdict == verdict and claim.values == values


@each_of_both
@pytest.mark.parametrize("name", COMPARED)
def test_the_last_kernel_of_one_regime_is_compared_with_nothing(name, missing):
    result = without(MadeUp(checkpoints=measured(**{name: 1.0})), missing)
    assert_untested(COMPARED[name](result), "both regimes")


@pytest.mark.parametrize("seeds, shown", [(1, "adversarial 12.5, benign 10.0"), (2, "12.5 (12.5 to 12.5)")])
def test_a_range_is_stated_if_there_are_several_seeds(seeds, shown):
    ranks = {"benign": 10.0, "adversarial": 12.5}
    checkpoints = measured(seeds=seeds, clean_effective_rank=lambda seed, regime: ranks[regime])
    assert shown in claims.ranks_differ(MadeUp(seeds, checkpoints=checkpoints)).measured


# 5c: images look like classes


def drawn(benign, adversarial):
    others = [
        {"kind": "images", "seed": seed, "regime": regime, "regression_correlation": correlation}
        for regime, values in (("benign", benign), ("adversarial", adversarial))
        for seed, correlation in enumerate(values)
    ]
    return MadeUp(max(len(benign), len(adversarial)), others=others)


@pytest.mark.parametrize(
    "benign, adversarial, verdict",
    [
        ([0.5], [0.75], HOLDS),
        ([0.5], [0.5], FAILS),
        ([0.75], [0.5], FAILS),
        ([0.5, 0.25], [0.75, 0.5], HOLDS),
        ([0.5, 0.5], [1.0, 0.25], FAILS),
    ],
    ids=str,
)
def test_images_look_like_classes_if_they_do_more_for_the_adversarial_kernel(benign, adversarial, verdict):
    claim = claims.images_look_like_classes(drawn(benign, adversarial))
    assert claim.verdict == verdict and claim.values == {"benign": benign, "adversarial": adversarial}


def test_images_are_compared_for_the_seeds_that_have_both():
    claim = claims.images_look_like_classes(drawn([0.5, 0.5], [0.75]))
    assert claim.verdict == HOLDS and claim.values == {"benign": [0.5], "adversarial": [0.75]}


@each_of_both
def test_images_of_one_regime_are_compared_with_nothing(missing):
    assert_untested(claims.images_look_like_classes(without(drawn([0.5], [0.75]), missing)), "images of both")


# 6: adversarial examples transfer

NAMES = ["benign/4/network", "benign/4/linearized/benign", "benign/2/network", "adversarial/4/network"]


def transfers(*entries, clean=(1.0, 0.5)):
    """For each seed the accuracies of the first two models on the examples of the other and on their own."""
    others = []
    for seed, ((own_0, from_1), (from_0, own_1)) in enumerate(entries):
        matrix = np.zeros((4, 4))
        # rows are the models that the examples are made for, columns those that are scored on them
        matrix[:2, :2] = [[own_0, from_0], [from_1, own_1]]
        others.append({"kind": "transfer", "seed": seed, "names": NAMES} | {"clean": [*clean, 1.0, 1.0]})
        others[-1]["matrix"] = matrix.tolist()
    return MadeUp(len(entries), others=others)


@pytest.mark.parametrize(
    "entries, verdict, shares",
    [
        # the first model loses 1 to its own and 0.75 to the other's, the second 0.5 and 0.125
        ([((0.0, 0.25), (0.375, 0.0))], HOLDS, [(0.75 + 0.25) / 2]),
        ([((0.0, 0.5), (0.375, 0.0))], FAILS, [(0.5 + 0.25) / 2]),
        ([((0.0, 0.0), (0.0, 0.0))], HOLDS, [1.0]),
        ([((0.0, 0.0), (0.0, 0.0)), ((0.0, 1.0), (0.5, 0.0))], FAILS, [1.0, 0.0]),
    ],
    ids=["three quarters and one", "half and one", "all", "not in the second seed"],
)
def test_examples_transfer_if_half_of_the_loss_does_between_models_of_one_kernel(entries, verdict, shares):
    claim = claims.examples_transfer(transfers(*entries))
    assert claim.verdict == verdict and claim.values["share"] == pytest.approx(shares)


def test_examples_that_help_another_model_count_as_no_loss():
    assert claims.examples_transfer(transfers(((0.0, 1.0), (1.0, 0.0)))).values["share"] == [0.0]


def test_a_model_that_loses_nothing_to_its_own_examples_is_left_out():
    assert claims.examples_transfer(transfers(((1.0, 0.0), (0.25, 0.0)))).values["share"] == [0.5]


@pytest.mark.parametrize(
    "result", [MadeUp(1), transfers(((1.0, 0.0), (0.0, 0.5)))], ids=["no stage 2", "no model loses anything"]
)
def test_without_a_loss_to_share_transfer_is_not_tested(result):
    assert_untested(claims.examples_transfer(result), "stage 2")


# 7: the flipped network catches up


def flipped(distances, robust=0.5):
    """Distances to the adversarial kernel: of the flipped and of the benign one, for each seed."""
    seeds, points = len(distances), {}
    for seed, (flip, benign) in enumerate(distances):
        points |= {(seed, "adversarial", 4.0): (0, 0), (seed, "flip", 4.0): (flip, 0)}
        points[seed, "benign", 4.0] = (0, benign)
    checkpoints = measured(ALL, seeds, robust=lambda seed, regime: {"flip": robust}.get(regime, 0.25))
    return MadeUp(seeds, checkpoints=checkpoints, points=points)


@pytest.mark.parametrize(
    "distances, verdict, ratios",
    [
        ([(1, 2)], HOLDS, [0.5]),
        ([(2, 2)], FAILS, [1.0]),
        ([(3, 2)], FAILS, [1.5]),
        ([(1, 2), (1, 4)], HOLDS, [0.5, 0.25]),
        ([(1, 2), (5, 4)], FAILS, [0.5, 1.25]),
    ],
    ids=str,
)
def test_the_flipped_network_catches_up_if_it_ends_nearer_than_the_benign_one(distances, verdict, ratios):
    claim = claims.flip_catches_up(flipped(distances))
    assert claim.verdict == verdict
    assert claim.values == {"ratio": pytest.approx(ratios), "gain": [0.25] * len(ratios)}
    assert "+0.250" in claim.measured


@pytest.mark.parametrize("missing", ALL)
def test_catching_up_takes_all_three_regimes(missing):
    assert_untested(claims.flip_catches_up(without(flipped([(1, 2)]), missing)), "all three regimes")
