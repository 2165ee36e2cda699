"""The command line as a whole: what it says of itself, how soon, and how it names what is wrong."""

import subprocess
import sys
from inspect import signature

import pytest

from ntkrobust_sk.cli.command import COMMANDS, main, read_arguments
from ntkrobust_sk.cli.named_attacks import ATTACKS, KNOWN_NORMS, make_attack
from ntkrobust_sk.cli.signatures import NONE_STATED, constant, parameters
from ntkrobust_sk.evolution import experiment, presets
from ntkrobust_sk.networks.named import NETWORKS
from ntkrobust_sk.networks.precision import PRECISIONS
from ntkrobust_sk.reports import demo
from ntkrobust_sk.tangent.linearization import DYNAMICS
from ntkrobust_sk.training.optimizers import OPTIMIZERS

# What commands cannot do without.
SAVED = ["--model", "m", "--data", "digits"]
NEEDED = {
    "evolve": ["--out", "x"],
    "report": ["x"],
    "gram": [*SAVED, "--out", "x"],
    "attack": [*SAVED, "--epsilon", "1"],
    "evaluate": [*SAVED, "--epsilon", "1"],
    "certify": [*SAVED, "--sigma", "1"],
}
# What takes long to import, and is of no use to those who ask how the command is called.
HEAVY = {"jax", "numpy", "scipy", "sklearn", "joblib", "matplotlib", "optax"}


@pytest.mark.parametrize(
    "asked", ["--help", "--version", *(f"{name} --help" for name in COMMANDS), "attack --epsilon x"]
)
def test_help_imports_nothing_that_takes_long(asked):
    code = (
        "import sys\nfrom ntkrobust_sk.cli import process\n"
        f"try:\n    sys.argv = ['ntkrobust', *{asked.split()!r}]\n    process()\n"
        f"finally:\n    print('imported', *sorted({HEAVY} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "imported"
    assert done.returncode == (2 if "--epsilon" in asked else 0)


@pytest.mark.parametrize(
    ("file", "thing"),
    [
        ("evolution/experiment.py", experiment.KernelEvolution),
        ("reports/demo.py", demo.Demo),
        ("cli/named_attacks.py", make_attack),
    ],
)
def test_what_is_read_from_the_source_is_what_the_code_has(file, thing):
    read, real = parameters(file, thing.__name__), signature(thing).parameters
    assert list(read) == list(real)
    for name, parameter in real.items():
        assert read[name].default == parameter.default
        assert read[name].annotation == parameter.annotation


@pytest.mark.parametrize(
    ("file", "name", "values"),
    [
        ("evolution/presets.py", "PRESETS", presets.PRESETS),
        ("evolution/experiment.py", "DYNAMICS", DYNAMICS),
        ("evolution/setting_checks.py", "ATTACKS", experiment.ATTACKS),
        ("cli/evolve.py", "NETWORKS", tuple(NETWORKS)),
        ("cli/evolve.py", "OPTIMIZERS", tuple(OPTIMIZERS)),
        ("reports/demo.py", "SIZES", demo.SIZES),
        ("reports/demo.py", "nothing", NONE_STATED),
    ],
)
def test_constants_are_read_as_they_are(file, name, values):
    assert constant(file, name) == values


@pytest.mark.parametrize(
    ("file", "name", "choices"),
    [
        ("evolution/experiment.py", "KernelEvolution.regimes", experiment.REGIMES),
        ("evolution/experiment.py", "KernelEvolution.dynamics", DYNAMICS),
        ("evolution/experiment.py", "KernelEvolution.stage2", experiment.STAGE2),
        ("evolution/experiment.py", "KernelEvolution.precision", PRECISIONS),
        ("cli/named_attacks.py", "make_attack.name", ATTACKS),
        ("cli/named_attacks.py", "make_attack.norm", KNOWN_NORMS),
    ],
)
def test_the_choices_in_the_help_are_those_of_the_code(file, name, choices):
    thing, _, parameter = name.partition(".")
    assert sorted(parameters(file, thing)[parameter].choices) == sorted(choices)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_option_has_a_help_that_says_something(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    printed = capsys.readouterr().out
    _, parser = read_arguments([command, *NEEDED.get(command, ())])
    options = [action for action in parser._actions if action.option_strings]
    assert "exit status: 0" in printed and "None" not in printed
    assert [one.dest for one in options if not one.help or len(one.help) < 5] == []
    assert [one.dest for one in options if "_" in one.dest and one.dest in printed] == []


def test_defaults_are_stated_also_where_they_depend_on_the_data(capsys):
    with pytest.raises(SystemExit):
        main(["evolve", "--help"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "[0.15; 0.1 for mnist; 0.05 for fashion-mnist; 4/255 for cifar10]" in printed
    assert "[1397; 5000 for mnist, fashion- mnist, cifar10]" in printed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("", "required: COMMAND"),
        ("evolv", "invalid choice: 'evolv'"),
        ("evolve", "required: --out"),
        ("evolve --out x --epsilo 3", "unknown argument --epsilo; did you mean --epsilon?"),
        ("evolve --out x --epsilo=3", "unknown argument --epsilo; did you mean --epsilon?"),
        ("evolve --out x y", "unknown argument y"),
        ("evolve --out x --n-train 1.5", "argument --n-train: invalid int value: '1.5'"),
        ("evolve --out x --network vgg", "argument --network: unknown network 'vgg'"),
        ("attack --model m --data digits", "required: --epsilon"),
    ],
)
def test_wrong_use_is_told_of_in_one_line_that_says_where_help_is(arguments, said, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments.split())
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and said in line and line.endswith("--help")


@pytest.mark.parametrize(
    ("message", "written"),
    [
        (
            "data_dir is the folder of mnist; 'data_dir' needs none",
            "--data-dir is the folder of mnist; 'data_dir' needs none",
        ),
        ("n_kernel=5 cannot hold one of each", "--n-kernel=5 cannot hold one of each"),
        ("unknown data 'letters'; known are 'digits'", "unknown data 'letters'; known are 'digits'"),
        ("the attack must be in the data", "the attack must be in the data"),
        ("epsilon must be a number >= 0", "--epsilon must be a number >= 0"),
        ("entry of regimes must be one of x", "entry of --regimes must be one of x"),
        ("patience and n_validation go together", "--patience and --n-validation go together"),
        ("a/n_train.npz and x.n_train and n_train_more", "a/n_train.npz and x.n_train and n_train_more"),
    ],
)
def test_arguments_are_named_as_options(message, written):
    _, parser = read_arguments(["evolve", "--out", "x"])
    assert parser.with_flags(message) == written


NUMBERS = [
    (command, one.name)
    for command, file, name in (
        ("evolve", "evolution/experiment.py", "KernelEvolution"),
        ("demo", "reports/demo.py", "Demo"),
    )
    for one in parameters(file, name).values()
    if one.annotation.removesuffix(" | None") in ("int", "float")
]


@pytest.mark.parametrize(("command", "name"), NUMBERS)
def test_a_wrong_number_is_told_of_by_its_option(command, name, tmp_path, capsys):
    flag = f"--{name.replace('_', '-')}"
    assert main([command, "--out", str(tmp_path / "x"), flag, "-1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"ntkrobust {command}: ") and flag in line and name not in line.replace(flag, "")
    assert not (tmp_path / "x").exists()


def test_radii_that_are_written_with_commas_or_signs_are_told_how_they_are(capsys):
    with pytest.raises(SystemExit):
        read_arguments(["attack", "--model", "x", "--data", "digits", "--epsilon", "-0.1,0.2"])
    assert "separated by spaces" in capsys.readouterr().err
