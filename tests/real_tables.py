"""Real tables with text, categories, integers and missing values: the copies that scikit-learn's tests have."""

import gzip
from functools import cache
from pathlib import Path

import pandas as pd
import sklearn

FILES = Path(sklearn.__file__).parent / "datasets" / "tests" / "data" / "openml"


@cache
def _read(path):
    with gzip.open(FILES / path, "rt") as file:
        names = []
        for line in file:
            if line.lower().startswith("@attribute"):
                names.append(line.split()[1].strip("'"))
            if line.lower().startswith("@data"):
                return pd.read_csv(file, names=names, na_values="?", skipinitialspace=True)


def titanic():
    """Return the 1309 passengers of the Titanic (OpenML 40945), and whether each survived.

    Classes and numbers of relatives are integers, age and fare have missing values, sex is text, the port a
    category of which two are missing.
    """
    frame = _read("id_40945/data-v1-dl-16826755.arff.gz")
    columns = ["pclass", "sex", "age", "sibsp", "parch", "fare", "embarked"]
    return frame[columns].astype({"embarked": "category"}), frame["survived"].map({0: "died", 1: "survived"})


def penguins():
    """Return 344 penguins (OpenML 42585), and the species of each; two have not been measured."""
    frame = _read("id_42585/data-v1-dl-21854866.arff.gz")
    return frame.drop(columns="species").astype({"island": "category"}), frame["species"]
