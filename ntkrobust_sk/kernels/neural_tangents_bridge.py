"""neural-tangents 0.6.5 on a JAX that is newer than it.

neural-tangents computes kernels of infinitely wide networks (``stax``, ``predict``, ``batch``) and empirical ones
(``empirical_ntk_fn``), against which ours are tested and measured. It was last released in December 2023 and does
not import since JAX 0.6: JAX has moved or dropped names that it asks for, and changed what it adapted from JAX's
internals. :func:`import_neural_tangents` imports the package as it is installed:

- where its modules import from JAX, they are given *views*, which add the missing names to those that JAX's
  modules have. JAX itself is never touched, not even for the time of the import;
- the few functions that lean on what has changed are rebound on its own modules;
- ``neural_tangents.experimental``, which would import TensorFlow, is left empty.

Nothing is written to the installed package, and a later ``import neural_tangents`` gets all of it.
"""

import builtins
import importlib
import math
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import SourceFileLoader
from importlib.util import spec_from_loader
from types import ModuleType, SimpleNamespace

import jax.core as jax_core
import jax.extend.core as extended
import jax.interpreters.ad
import jax.numpy as jnp
import scipy.linalg
from jax.interpreters.ad import UndefinedPrimal, Zero, is_undefined_primal

PACKAGE = "neural_tangents"


def import_neural_tangents() -> ModuleType:
    """Import the package neural-tangents 0.6.5, all of it but ``experimental``.

    Its own documentation holds, with these warnings: ``empirical_ntk_fn`` is one to two orders of magnitude slower
    without ``vmap_axes=0``; ``batch`` judges by the first blocks whether x1 is x2; the functions of ``predict``
    take concrete kernels, so call them outside of ``jit``; a process that unpickles anything of the package must
    have called this function before.

    Returns
    -------
    module
        ``neural_tangents``, imported at the first call. A package that is imported already is returned as it is.

    Raises
    ------
    ImportError
        If neural-tangents or frozendict is not installed.

    References
    ----------
    Novak et al. 2020, arXiv:1912.02803 (the library); Novak et al. 2022, arXiv:2206.08720 (empirical kernels).
    """
    if PACKAGE in sys.modules:
        return importlib.import_module(PACKAGE)
    _forget()  # what an import without the bridge left behind when it failed
    finder = _Finder(_views())
    sys.meta_path.insert(0, finder)
    try:
        package = importlib.import_module(PACKAGE)
    except BaseException as error:
        _forget()
        if isinstance(error, ModuleNotFoundError) and error.name in (PACKAGE, "frozendict"):
            raise ImportError(
                f"this needs neural-tangents 0.6.5 ({error}): pip install --no-deps neural-tangents==0.6.5 "
                "frozendict. With its dependencies, as in pip install 'ntkrobust_sk[infinite]', come 1.8 GB of "
                "TensorFlow that are not used here"
            ) from error
        raise
    finally:
        sys.meta_path.remove(finder)
    return package


def _forget() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
        del sys.modules[name]


class _Finder(MetaPathFinder):
    """A finder of neural-tangents' modules where they are installed, which has them loaded with the views."""

    def __init__(self, views: dict[str, ModuleType]):
        self.views = views

    def find_spec(self, fullname, path, target=None):
        if fullname.partition(".")[0] != PACKAGE:
            return None
        if fullname == f"{PACKAGE}.experimental":
            return spec_from_loader(fullname, _Empty())
        found = (finder.find_spec(fullname, path, target) for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, found), None)
        if spec is not None:
            spec.loader = _Loader(fullname, str(spec.origin), self.views)
        return spec


class _Empty(Loader):
    def exec_module(self, module):
        module.__doc__ = "Left empty by ntkrobust_sk: it needs TensorFlow."


class _Loader(SourceFileLoader):
    """A loader that runs a module with an ``import`` statement that knows the views."""

    def __init__(self, fullname: str, path: str, views: dict[str, ModuleType]):
        super().__init__(fullname, path)
        self.views = views

    def exec_module(self, module):
        vars(module)["__builtins__"] = {**vars(builtins), "__import__": self._import}
        super().exec_module(module)
        for name, replacement in _REPLACEMENTS.get(module.__name__, {}).items():
            setattr(module, name, replacement)

    def _import(self, name, globals=None, locals=None, fromlist=(), level=0):
        if level == 0 and name in self.views:
            return self.views[name]
        return builtins.__import__(name, globals, locals, fromlist, level)


class _View(ModuleType):
    """A module's names, and more."""

    def __init__(self, module: ModuleType, **names):
        super().__init__(module.__name__)
        self._module = module
        vars(self).update(names)

    def __getattr__(self, name):
        return getattr(self._module, name)


def _views() -> dict[str, ModuleType]:
    """Return the modules of JAX that neural-tangents is to see otherwise than they are."""
    core = _View(
        jax_core,
        **{name: getattr(extended, name) for name in ("Jaxpr", "JaxprEqn", "Literal", "Primitive", "Var")},
        DShapedArray=type("DShapedArray", (), {}),  # nothing is one
    )
    ad = _View(
        jax.interpreters.ad,
        zeros_like_p=extended.Primitive("zeros_like"),  # no equation has it
        config=SimpleNamespace(jax_enable_checks=False),
        source_info_util=SimpleNamespace(transform_name_stack=jax.named_scope),
    )
    util = ModuleType("jax.util")
    vars(util)["safe_map"] = lambda f, *args: [f(*each) for each in zip(*args, strict=True)]
    vars(util)["safe_zip"] = lambda *args: list(zip(*args, strict=True))
    interpreters = _View(jax.interpreters, ad=ad)
    top = _View(jax, core=core, interpreters=interpreters, util=util)
    inner = {"core": core, "interpreters": interpreters, "interpreters.ad": ad, "util": util}
    return {"jax": top, **{f"jax.{name}": view for name, view in inner.items()}}


def _outputs_and_pullback(fn, mode, _j_rules, _s_rules, _fwd, *primals):
    """Return outputs, and a function that collects derivatives backward through the tangent map's equations."""
    with jax.disable_jit():  # no rule of theirs is for an equation that holds others
        outputs, tangent_map = jax.linearize(fn, *primals)
        jaxpr = jax.make_jaxpr(tangent_map)(*primals)

    def pullback(cotangents):
        collected = sys.modules[f"{PACKAGE}._src.empirical"]._backward_pass(
            jaxpr.jaxpr,
            mode=mode,
            consts=jaxpr.consts,
            primals_in=[UndefinedPrimal(var.aval) for var in jaxpr.jaxpr.invars],
            cotangents_in=tuple(jax.tree.leaves(cotangents)),
            _j_rules=_j_rules,
            _s_rules=_s_rules,
            _fwd=_fwd,
        )
        return jax.tree.unflatten(jax.tree.structure(primals), collected)

    return outputs, pullback


def _transpose(eqn: extended.JaxprEqn | None, cotangent, *inputs) -> list:
    """Return the cotangents of the linear ones of an equation's inputs, and None for the others."""
    if eqn is None:  # the identity
        return [cotangent]
    linear = [is_undefined_primal(value) for value in inputs]
    variables = [value.aval for value in inputs if is_undefined_primal(value)]

    def apply(*variables):
        given = iter(variables)
        operands = [next(given) if own else value for own, value in zip(linear, inputs, strict=True)]
        outputs = eqn.primitive.bind(*operands, **eqn.params)
        return outputs[0] if eqn.primitive.multiple_results else outputs

    if isinstance(cotangent, Zero):
        pulled = map(Zero, variables)
    else:
        shapes = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in variables]
        pulled = iter(jax.linear_transpose(apply, *shapes)(cotangent))
    return [next(pulled) if own else None for own in linear]


def _flops(f, optimized: bool, *args, **kwargs) -> float:
    lowered = jax.jit(f).lower(*args, **kwargs)
    return ((lowered.compile() if optimized else lowered).cost_analysis() or {})["flops"]


def _eigvalsh(a, eigvals: tuple[int, int]):
    return scipy.linalg.eigvalsh(a, subset_by_index=eigvals)


_REPLACEMENTS = {
    f"{PACKAGE}._src.empirical": {
        "_get_primals_out_and_pullback": _outputs_and_pullback,
        "_eqn_vjp_fn": _transpose,
        "_get_flops": _flops,
        # shapes have no size, and arrays are no data types, as JAX and NumPy warn
        "jnp": _View(jnp, size=lambda x: math.prod(jnp.shape(x)), dtype=jnp.result_type),
    },
    # SciPy 1.14 dropped ``eigvals``
    f"{PACKAGE}._src.predict": {"sp": SimpleNamespace(linalg=SimpleNamespace(eigvalsh=_eigvalsh))},
}
