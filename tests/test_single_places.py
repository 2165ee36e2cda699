"""What has one place in the package stays in one place: decisions, checks, and questions about types."""

import ast
from pathlib import Path

import ntkrobust_sk

PACKAGE = Path(ntkrobust_sk.__file__).parent
TREES = {
    path.relative_to(PACKAGE).with_suffix("").as_posix(): ast.parse(path.read_text())
    for path in sorted(PACKAGE.rglob("*.py"))
}


def calls(name):
    """Where a function or class of this name is called: module and call."""
    return [
        (module, node)
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == name
    ]


def asked_for(attributes):
    """Where objects are asked by ``hasattr`` or ``getattr`` for one of these attributes."""
    return [
        (module, ast.unparse(call))
        for name in ("hasattr", "getattr")
        for module, call in calls(name)
        if ast.unparse(call.args[1]).strip("'\"") in attributes
    ]


def test_one_function_decides_between_a_compiled_loop_and_one_in_python():
    # Square Attack draws numbers for several queries at once where its loop is compiled
    asked = [module for module, _ in calls("prefers_compiled_loop")]
    assert sorted(asked) == ["attacks/square", "execution/loops"]


def test_kernels_are_asked_for_their_kind_at_most_twice():
    asked = [module for module, call in calls("isinstance") if "Kernel" in ast.unparse(call.args[1])]
    assert len(asked) <= 2


def test_estimators_are_not_asked_for_private_attributes_by_name():
    assert asked_for({"_predictor", "_rows", "_answers", "_score", "_attack_targets"}) == []


def test_no_attack_checks_its_settings_by_building_another():
    attacks = {
        node.name
        for module, tree in TREES.items()
        for node in tree.body
        if module.startswith("attacks/") and isinstance(node, ast.ClassDef) and node.decorator_list
    }
    assert {"PGD", "FAB", "AutoAttack", "SigmaZero"} <= attacks
    built = [
        (module, ast.unparse(inner))
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name == "__post_init__" and module.startswith("attacks/")
        for inner in ast.walk(node)
        if isinstance(inner, ast.Call) and ast.unparse(inner.func) in attacks
    ]
    assert built == []


def test_abilities_of_attacks_are_types_and_not_names():
    assert asked_for({"nearest", "run", "in_tiles"}) == []


SHAPED = ("Bool", "Float", "Inexact", "Int", "Integer", "Num", "Real", "Shaped")


def test_shapes_of_any_number_of_axes_are_strings():
    """The oldest jaxtyping reads no bare ``...``, into which a linter turns the string."""
    shapes = [
        node
        for tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Subscript) and ast.unparse(node.value) in SHAPED
    ]
    assert len(shapes) > 10
    parts = [part for node in shapes for part in ast.walk(node.slice)]
    assert not [part for part in parts if isinstance(part, ast.Constant) and part.value is ...]


def parts_of(node):
    """The text of a message, with braces where values are put in."""
    if isinstance(node, ast.JoinedStr):
        return "".join(parts_of(part) for part in node.values)
    if isinstance(node, ast.BinOp):
        return parts_of(node.left) + parts_of(node.right)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else "{}"


def test_errors_end_without_a_full_stop():
    raised = [
        (module, parts_of(node.exc.args[0]))
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args
    ]
    assert len(raised) > 300
    assert [(module, text) for module, text in raised if text.endswith(".")] == []


def test_shapes_are_written_in_one_way():
    kinds = ast.Module, ast.ClassDef, ast.FunctionDef
    documented = [
        (module, ast.get_docstring(node) or "")
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, kinds)
    ]
    assert sum(" : array (n" in text for _, text in documented) > 50
    assert [module for module, text in documented if " : array of shape" in text or "ndarray of" in text] == []
