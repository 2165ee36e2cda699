"""Generated calls over the public API: odd arguments must meet a clear error, or be taken for what they are.

Each call is a valid one of the table below in which one or two arguments are replaced by something from a pool of
odd values. What comes back is

    fine     a result that is finite, from arguments of the right kind
    clear    an error raised by this library, or by scikit-learn's own checks of arguments
    unnamed  the same, but its message does not name the argument (listed, not counted as a fault)
    obscure  an error from inside JAX, NumPy or Python
    silent   a result that is not finite or of another shape, or from an argument of another kind
    hung     nothing after 20 seconds of the processor, or two minutes by the clock
    crashed  the process ended

    python examples/fuzz_calls.py                        # 5,000 calls, some minutes
    python examples/fuzz_calls.py --seed 3 -n 500        # others, fewer
    python examples/fuzz_calls.py --only solve           # one function's alone

Every call is one line of Python over the names that ``PRELUDE`` defines, and is printed as such. The process ends
with an error if anything was obscure, silent, hung or crashed.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import json
import linecache
import numbers
import os
import re
import signal
import subprocess
import sys
import traceback
import warnings
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

# Of the processor, since other work on the machine is no fault of a call's; what sleeps is seen by the clock.
SECONDS, CLOCK = 20, 6
FAULTS = ("obscure", "silent", "hung", "crashed")

PRELUDE = """
import dataclasses, datetime, decimal, fractions, tempfile
from pathlib import Path
import flax.linen as nn, jax, jax.example_libraries.stax as stax, jax.numpy as jnp, numpy as np
import optax, pandas as pd, scipy.sparse as sp
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, Ridge
from ntkrobust_sk import *
from ntkrobust_sk import kernels, testing, training
from ntkrobust_sk.analysis import images as eigenfeatures
from ntkrobust_sk.execution import memory as plan
from ntkrobust_sk.kernels import store
from ntkrobust_sk.cli.attacked_examples import attack_examples
from ntkrobust_sk.cli.named_attacks import make_attack
from ntkrobust_sk.cli.saved_models import load_estimator
from ntkrobust_sk.kernels.predictors import make_predictor
from ntkrobust_sk.datasets.splits import load_splits
r = np.random.default_rng(0)
X, y = r.uniform(size=(12, 4)).astype(np.float32), np.arange(12) % 3
images = r.uniform(size=(12, 4, 4, 1)).astype(np.float32)
key, Y = jax.random.key(0), np.eye(3)[y]
net = MLP(3, widths=(5,)); model = Model(net, net.init(key, (4,)))
cnn = CNN(3, widths=(2,), strides=(1,)); image_model = Model(cnn, cnn.init(key, (4, 4, 1)))
K, K3, K4 = (gram(name, model, X) + 0.0 for name in ("trace", "class", "full"))
K_other = gram("pseudo", model, X)
pgd, sgd = PGD(0.1, n_steps=2), optax.sgd(0.1)
dense, lr = nn.Dense(3), LogisticRegression().fit(X, y)
clf = EmpiricalNTKClassifier(model, alpha=0.1).fit(X, y)
reg = EmpiricalNTKRegressor(Model(MLP(1), MLP(1).init(key, (4,))), alpha=0.1).fit(X, y)
trainer = AdversarialKernelTrainer(net, max_epochs=1, batch_size=16, random_state=0).fit(X, y)
tangents = TangentFeatures(model).fit(X)
selector = RobustFeatureSelector(model, attack=pgd, n_candidates=2, n_features=1, random_state=0).fit(X, y)
state = next(train(model, X, y, key=key, optimizer=sgd, batch_size=16))
report = robustness_report(lr, X, y, [0.1], attacks=FGSM(0.1))
folder = tempfile.mkdtemp()
gram("trace", model, X, store=folder + "/K.zarr")
"""

# <name:kind text>: an argument, its kind, and a valid value.
CALLS = """
APGD(<epsilon:number 0.1>, <n_steps:integer 3>, <norm:choice 'linf'>, <loss:choice 'ce'>,
    <n_restarts:integer 1>, <n_targets:integer 2>, <bounds:bounds? (0.0, 1.0)>)(<model:model model>,
    <x:images X>, <y:integers y>, <key:key key>) # x
FAB(<epsilon:number 0.1>, <n_steps:integer 2>, <norm:choice 'linf'>, <n_restarts:integer 1>,
    <n_targets:integer 2>, <bounds:bounds? (0.0, 1.0)>)(<model:model model>, <x:images X>, <y:integers y>,
    <key:key key>) # x
PGD(<epsilon:number 0.1>, <n_steps:integer 2>, <step_size:number? None>, <norm:choice 'linf'>,
    <random_start:flag True>, <n_restarts:integer 1>, <bounds:bounds? (0.0, 1.0)>)(<model:model model>,
    <x:images X>, <y:targets y>, <key:key key>) # x
FGSM(<epsilon:number 0.1>, <norm:choice 'l2'>, <bounds:bounds? (0.0, 1.0)>)(<model:model model>, <x:images X>,
    <y:targets y>, <key:key key>) # x
NFGSM(<epsilon:number 0.1>, <noise:number 2.0>, <step_size:number? None>, <bounds:bounds? (0.0, 1.0)>)(
    <model:model model>, <x:images X>, <y:targets y>, <key:key key>) # x
FMN(<epsilon:number 0.1>, <n_steps:integer 2>, <norm:choice 'linf'>, <step_size:number 1.0>,
    <gamma:number 0.05>, <bounds:bounds? (0.0, 1.0)>)(<model:model model>, <x:images X>, <y:integers y>,
    <key:key key>) # x
DDN(<epsilon:number 0.1>, <n_steps:integer 2>, <step_size:number 1.0>, <radius:number 1.0>, <gamma:number 0.05>,
    <bounds:bounds? (0.0, 1.0)>)(<model:model model>, <x:images X>, <y:integers y>, <key:key key>) # x
SigmaZero(<epsilon:number 2>, <n_steps:integer 2>, <step_size:number 1.0>, <sigma:number 1e-3>,
    <threshold:number 0.3>, <bounds:bounds? (0.0, 1.0)>)(<model:model model>, <x:images X>, <y:integers y>,
    <key:key key>) # x
Square(<epsilon:number 0.1>, <n_queries:integer 3>, <norm:choice 'linf'>, <share:number 0.8>,
    <bounds:bounds? (0.0, 1.0)>)(<model:model model>, <x:images X>, <y:integers y>, <key:key key>) # x
AutoAttack(<epsilon:number 0.1>, <norm:choice 'linf'>, <n_steps:integer 2>, <n_queries:integer 2>,
    <n_targets:integer 2>, <bounds:bounds? (0.0, 1.0)>)(<model:model model>, <x:images X>, <y:integers y>,
    <key:key key>) # x
AutoAttack(0.1, n_steps=2, n_queries=2, n_targets=2).run(<model:model model>, <X:images X>, <y:integers y>,
    <key:key key>, <rows:integer? 64>)
AutoAttack(0.1).members(<n_classes:integer 3>)
Box(<low:any 0.0>, <high:any 1.0>, <mask:any None>, <integers:any ()>, <one_hot:any ()>, <categories:any ()>,
    <n_changes:integer? None>)
Box.from_data(<X:any X>)
MLP(<n_outputs:integer? 3>, <widths:any (5,)>, <activation:choice 'relu'>,
    <zero_last_layer:flag False>).init(<key:key key>, <input_shape:any (4,)>)
CNN(<n_outputs:integer? 3>, <widths:any (2,)>, <strides:any (1,)>, <kernel_size:integer 3>,
    <activation:choice 'relu'>, <zero_last_layer:flag False>).init(<key:key key>, <input_shape:any (4, 4, 1)>)
ResNet18(<n_outputs:integer? 3>, <width:integer 1>, <zero_last_layer:flag True>).init(<key:key key>,
    <input_shape:any (4, 4, 1)>)
Normalized(<network:network net>, <mean:any (0.5,)>, <std:any (0.5,)>).init(<key:key key>,
    <input_shape:any (4,)>)
MixedPrecision(<network:network net>, <precision:choice 'bf16'>).init(<key:key key>, <input_shape:any (4,)>)
Stateless(<apply_fn:callable lambda p, x: x @ p>, <init_fn:callable? None>)
Linearized(<network:network net>, <centered:flag False>).init(<key:key key>, <input_shape:any (4,)>)
Model(<network:network net>, <variables:any model.variables>)(<x:complex X>)
Model(Stateless(<apply_fn:callable lambda p, x: x @ p>), Variables(<params:any np.ones((4, 3))>,
    <state:any ()>))(X)
model(<x:complex X>)
linearize(<model:model model>, <centered:flag False>)(X)
gram(<kernel:kernel 'trace'>, <model:Model model>, <X:images X>, <Y:images? None>, <memory:memory '2GiB'>,
    <dtype:any None>, <by_layer:flag False>, <store:path? None>, <n_jobs:integer? None>, <plan:any False>,
    <progress:flag False>)
gram('class', <model:Model model>, <X:images X>, <Y:images? X>)
gram('full', <model:Model model>, <X:images X>, <store:path? None>, <dtype:any None>)
gram(<kernel:kernel 'pseudo'>, <model:Model image_model>, <X:images images>)
gram_operator(<kernel:kernel 'trace'>, <model:Model model>, <X:images X>, <Y:images? None>, <memory:memory '2GiB'>,
    <dtype:any None>, <n_jobs:integer? None>).matmat(np.ones((12, 2))) # X
gram('trace', model, X, <params:any 'dense_0'>)
kernel_diag(<kernel:kernel 'trace'>, <model:Model model>, <X:images X>, <memory:memory '2GiB'>,
    <dtype:any None>, <params:any None>)
parameter_names(<model:Model model>)
networks.restricted(<model:Model model>, <params:any 'dense_0'>)
TraceNTK()(<model:Model model>, <x1:images X>, <x2:images X>)
ClassNTK()(<model:Model model>, <x1:images X>, <x2:images X>)
FullNTK()(<model:Model model>, <x1:images X>, <x2:images X>)
PseudoNTK()(<model:Model model>, <x1:images X>, <x2:images X>)
ProjectedNTK(<n_components:integer 4>, <seed:integer 0>, <of:choice 'trace'>)(<model:Model model>,
    <x1:images X>, <x2:images X>)
InfiniteNTK(<network:any (len, len, len)>, <kind:choice 'ntk'>)
NTKKernel(<model:Model model>, <kernel:kernel 'trace'>, <scale:number 0.1>, <scale_bounds:any 'fixed'>,
    <input_shape:any None>, <memory:memory '2GiB'>)(<X:images X>, <Y:images? X>)
NTKKernel(<model:Model model>, <kernel:kernel 'pseudo'>, <scale:number 0.1>).diag(<X:images X>)
make_predictor(kernels.TraceNTK(), <model:Model model>, <X:images X>, <dual_coef:matrix Y>,
    <offset:any np.zeros(3)>, <memory:memory '2GiB'>)(X)
plan.parse_memory(<memory:memory '2GiB'>)
store.read_gram(<path:path folder + '/K.zarr'>)
kernels.open_gram(<path:path folder + '/K.zarr'>).matvec(np.ones(12)) # X
gram_operator('class', model, X).columns(<indices:integers np.array([3, 0])>)
solve(<gram:matrix K>, <targets:matrix Y>, <alpha:number 0.1>, <solver:solver 'cholesky'>,
    <sample_weight:vector? None>) # targets
solve(<gram:matrix K3>, <targets:matrix Y>, <alpha:number 0.1>, <solver:solver 'eigh'>,
    <sample_weight:vector? np.ones(12)>) # targets
solve(<gram:matrix K4>, <targets:matrix Y>, <alpha:number 0.1>) # targets
Cholesky(<max_residual:number? None>)(<A:matrix K + np.eye(12)>, <B:matrix Y>) # B
Eigh(<max_residual:number? None>, <rcond:number? None>)(<A:matrix K + np.eye(12)>, <B:matrix Y>) # B
ConjugateGradient(<tol:number 1e-6>, <max_iter:integer 100>, <rank:integer? None>,
    <seed:integer 0>)(<A:matrix K + np.eye(12)>, <B:matrix Y>) # B
solve(<gram:matrix K>, <targets:matrix Y>, <alpha:number 0.1>, solver=Nystrom(<n_landmarks:integer? None>,
    <tol:number 1e-8>, <seed:integer 0>)) # targets
solve(FeatureGram(<inputs:rows X>), <targets:matrix Y>, <alpha:number 0.1>, solver=EigenPro(<tol:number 1e-3>,
    <max_epochs:integer 20>, <batch_size:integer? None>, <n_eigenvectors:integer? None>,
    <n_sample:integer 2000>, <seed:integer 0>)) # targets
kernel_trace(<K:matrix K>)
kernel_norm(<K:matrix K>, <probes:any analysis.Probes()>)
top_eigenpairs(<K:matrix K>, <k:integer 3>)
effective_rank(<K:matrix K>, <kind:choice 'entropy'>)
effective_rank(gram_operator('trace', model, X), <kind:choice 'entropy'>, <probes:any analysis.Probes()>)
kernel_alignment(<K1:matrix K>, <K2:matrix K_other>, <centered:flag False>)
kernel_distance(<K1:matrix K>, <K2:matrix K_other>)
kernel_specialization(<K_classes:matrix K3>, <Y:matrix Y>, <normalization:choice 'kernels'>,
    <centered:flag False>)
kernel_velocity(<K1:matrix K>, <K2:matrix K_other>, <dt:number 1.0>)
polar_dynamics(<K_t:matrix K>, <K_start:matrix K_other>, <K_end:matrix K @ K>)
target_alignment(<K:matrix K>, <y:matrix y>, <centered:flag False>)
top_mass(<K:matrix K>, <k:integer 3>)
train(<start:model model>, <X:images X>, <y:targets y>, <key:key key>, <optimizer:optimizer sgd>,
    <attacks:attacks (Clean(),)>, <epochs:any 1>, <batch_size:integer 16>, <sample_weight:vector? None>,
    <freeze_state:flag False>, <loss:any TRADES()>, <weight_perturbation:any None>, <augmentation:any None>,
    <learning_rate:any None>).__next__()
AdversarialKernelTrainer(max_epochs=1, loss=AdversarialTraining()).fit(X, <y:targets y>)
TRADES(<beta:number 6.0>)(Y, Y, y)
MART(<beta:number 5.0>)(Y, Y, y)
AWP(<gamma:number 0.005>).moved(Y, Y)
Flip()(key, images)
Crop(<padding:integer 1>, <fill:number 0.0>)(key, images)
Cosine(<final:number 0.0>, <warmup:number 0.0>)(np.array([0.0, 0.5]))
MultiStep(<at:any (0.5, 0.75)>, <factor:number 0.1>)(np.array([0.0, 0.5]))
train(<start:model state>, <X:images X>, <y:targets y>, <optimizer:optimizer sgd>, <attacks:attacks (pgd,)>,
    <epochs:any [2]>, batch_size=16).__next__()
eigenfeature_images(<model:Model model>, <X:images X>, <coefficients:matrix Y>, <n_steps:integer 2>,
    <step_size:number 0.02>, <bounds:bounds (0.0, 1.0)>)
ntk_features(<kernel:kernel 'trace'>, <model:Model model>, <X:images X>, <y:integers y>, <X_test:images X>,
    <y_test:integers y>, <attack:attack pgd>, <n_features:integer 2>, <key:key key>, <K:matrix? None>,
    <memory:memory '2GiB'>)
eigenfeatures.regression_coefficients(<K_classes:matrix K3>, <y:integers y>, <alpha:number 0.01>)
eigenfeatures.class_eigenvectors(<K_classes:matrix K3>, <y:integers y>, <index:integer 0>)
EmpiricalNTKClassifier(<estimator:source model>, <kernel:kernel 'trace'>, <alpha:number 0.1>,
    <solver:solver 'cholesky'>, <dynamics:choice 'centered'>, <input_shape:any None>, <class_weight:any None>,
    <memory:memory '2GiB'>, <precision:any 'bf16'>, <params:any None>, <random_state:seed? 0>).fit(<X:rows X>,
    <y:labels y>, <sample_weight:vector? None>).predict(X)
EmpiricalNTKClassifier(model, <gram_store:path folder + '/K.zarr'>).fit(X, y)
EmpiricalNTKClassifier(<kernel:kernel 'precomputed'>).fit(<X:matrix K>, y=y).predict(K)
EmpiricalNTKClassifier(<estimator:source net>, <attack:attack? None>, <clean_step:flag True>,
    <max_epochs:integer 1>, <batch_size:integer 16>, <learning_rate:number 0.01>, <momentum:number 0.9>,
    <random_state:seed? 0>, <verbose:any 0>).fit(<X:rows X>, <y:labels y>).predict(<X:rows X>)
EmpiricalNTKRegressor(<estimator:source net>, <kernel:kernel 'pseudo'>, <alpha:number 0.1>,
    <max_epochs:integer 1>, <batch_size:integer 16>, <input_shape:any None>, <random_state:seed? 0>).
    fit(<X:rows X>, <y:labels y>, <sample_weight:vector? None>).predict(X)
EmpiricalNTKClassifierCV(<estimator:source model>, <kernel:kernel 'trace'>, <alphas:vector np.array([0.1, 1.0])>,
    <scoring:choice 'accuracy'>, <attack:attack? None>, <cv:any 2>, <class_weight:any None>, <cache:any None>,
    <memory:memory '2GiB'>, <random_state:seed? 0>).fit(<X:rows X>, <y:labels y>, <sample_weight:vector? None>).
    predict_proba(<X:rows X>)
EmpiricalNTKClassifierCV(model, alphas=[1.0], scoring='robust', <attack:attack pgd>, <cv:any 2>,
    <random_state:seed? 0>).fit(<X:rows X>, <y:labels y>).predict(X)
EmpiricalNTKRegressorCV(<estimator:source net>, <kernel:kernel 'pseudo'>,
    <stopping_times:vector? np.array([1.0, 10.0])>, <scoring:choice 'gcv'>, <input_shape:any None>,
    <random_state:seed? 0>).fit(<X:rows X>, <y:labels y>, <sample_weight:vector? None>).
    predict(<X:rows X>, <return_std:flag False>)
reg.predict(<X:rows X>, <return_std:flag True>)[1]
clf.ood_score(<X:rows X>)
clf.ood_model(<level:number 0.9>)(X)
AdversarialKernelTrainer(<network:source net>, <attack:attack? None>, <clean_step:flag True>,
    <dynamics:choice 'standard'>, <max_epochs:integer 1>, <batch_size:integer 16>, <learning_rate:number 0.05>,
    <momentum:number 0.9>, <input_shape:any None>, <class_weight:any None>, <precision:any None>,
    <random_state:seed? 0>, <verbose:any 0>).fit(<X:rows X>, <y:labels y>, <sample_weight:vector? None>).predict(X)
AdversarialKernelTrainer(net, attack=pgd, max_epochs=1, batch_size=16, random_state=0, <optimizer:any 'sgd'>,
    <learning_rate:any None>, <momentum:any None>, <weight_decay:any None>,
    <learning_rate_schedule:any 'constant'>, <loss:any None>,
    <weight_perturbation:any None>, <augmentation:any None>,
    <ema_decay:any None>, <early_stopping:flag False>,
    <validation_fraction:any 0.5>, <validation_attack:any None>,
    <n_iter_no_change:any None>, <warm_start:flag False>).fit(X, y).predict(X)
AdversarialKernelTrainer(net, batch_size=16, random_state=0).partial_fit(<X:rows X>, <y:labels y>, <classes:any y>,
    <sample_weight:vector? None>).predict(X)
TangentFeatures(<estimator:source model>, <kernel:choice 'pseudo'>, <n_components:integer? None>,
    <input_shape:any None>, <memory:memory '2GiB'>, <random_state:seed? 0>).fit(<X:rows X>,
    <y:any None>).transform(<X:rows X>)
RobustFeatureSelector(<estimator:source model>, <kernel:choice 'trace'>, <attack:attack pgd>,
    <n_features:integer 1>, <n_candidates:integer 2>, <criterion:choice 'robustness'>, <input_shape:any None>,
    <memory:memory '2GiB'>, <random_state:seed? 0>).fit(<X:rows X>, <y:labels y>).transform(X)
clf.predict(<X:rows X>)
clf.predict_proba(<X:rows X>)
clf.decision_function(<X:rows X>)
clf.score(<X:rows X>, <y:labels y>, <sample_weight:vector? None>)
clf.perturb(<X:rows X>, <y:labels y>, <attack:attack pgd>, <random_state:seed? 0>,
    <targets:any None>,
    <epsilon:any None>, <n_jobs:integer? 1>, <progress:flag False>)
clf.robust_score(<X:rows X>, <y:labels y>, <attack:attack pgd>, <sample_weight:vector? None>,
    <random_state:seed? 0>, <targets:any None>,
    <epsilon:any None>, <n_jobs:integer? 1>, <progress:flag False>)
clf.gram(<X:rows X>, <Y:rows? None>)
clf.attribute(<X:rows X>)
clf.top_attributions(<X:rows X>, <k:integer 3>, <target:labels y>).helpful_values
reg.attribute(<X:rows X>)
reg.top_attributions(<X:rows X>, <k:integer 3>, <target:integer? None>).harmful_values
TopContributions.of_matrix(<contributions:matrix K>, <k:integer 3>).helpful_values
trak_scores(<models:Model model>, <X_fit:images X>, <y_fit:integers y>, <X:images X>, <y:integers y>,
    <n_components:integer 4>, <alpha:number 1.0>, <random_state:integer 0>, <memory:memory '2GiB'>)
reg.predict(<X:rows X>)
reg.score(<X:rows X>, <y:labels y>)
reg.robust_score(<X:rows X>, <y:labels y>, <attack:attack pgd>)
trainer.predict(<X:rows X>)
trainer.robust_score(<X:rows X>, <y:labels y>, <attack:attack pgd>)
trainer.gram(<X:rows X>, <Y:rows? None>, <kernel:kernel 'trace'>, <memory:memory '2GiB'>)
tangents.transform(<X:rows X>)
selector.transform(<X:rows X>)
as_model(<estimator:estimator lr>, <kernel:callable? None>, <X_fit:images? None>)(X)
as_model(lr)(<x:images X>)
perturb(<estimator:estimator lr>, <X:rows X>, <y:labels y>, <attack:attack pgd>, <random_state:seed? 0>,
    <targets:any None>,
    <epsilon:any None>, <n_jobs:integer? 1>, <progress:flag False>)
robust_accuracy(<estimator:estimator lr>, <X:rows X>, <y:labels y>, <attack:attack pgd>,
    <sample_weight:vector? None>, <random_state:seed? 0>, <targets:any None>,
    <epsilon:any None>, <n_jobs:integer? 1>, <progress:flag False>)
make_robust_scorer(<attack:attack pgd>, <random_state:seed? 0>)(<estimator:estimator lr>, <X:rows X>,
    <y:labels y>)
robustness_report(<estimator:estimator lr>, <X:rows X>, <y:labels y>, <epsilons:any [0.1]>,
    <norm:choice 'linf'>, <bounds:bounds? (0.0, 1.0)>, <attacks:attacks FGSM(0.1)>,
    <nearest:attack? FAB(0.1, n_steps=2)>, <confidence:number 0.95>, <random_state:seed? 0>,
    <targets:any None>, <n_jobs:integer? 1>, <progress:flag False>).accuracies
report.quantiles(<q:any 0.5>)
report.plot(<ax:any None>, <line_kw:any None>, <fill_between_kw:any None>)
minimal_perturbations(<estimator:estimator lr>, <X:rows X>, <y:labels y>, <attack:attack FAB(0.1, n_steps=2)>,
    <norm:choice 'linf'>, <bounds:bounds? (0.0, 1.0)>, <random_state:seed? 0>,
    <targets:any None>, <n_jobs:integer? 1>, <progress:flag False>) < 9
transfer_matrix(<estimators:any {'a': lr}>, <X:rows X>, <y:labels y>, <attack:attack pgd>,
    <random_state:seed? 0>)
check_evaluation(<estimator:estimator lr>, <X:rows X>, <y:labels y>, <attack:attack pgd>, <n_queries:integer 2>,
    <confidence:number 0.99>, <random_state:seed? 0>)
certify(<estimator:estimator lr>, <X:rows X>, <sigma:number 0.1>, <n_selection:integer 4>,
    <n_samples:integer 8>, <alpha:number 0.001>, <random_state:seed? 0>, <n_jobs:integer? 1>,
    <progress:flag False>)
certified_accuracy(<estimator:estimator lr>, <X:rows X>, <y:labels y>, <radii:any [0.1]>, <sigma:number 0.1>,
    <n_selection:integer 4>, <n_samples:integer 8>, <alpha:number 0.001>, <random_state:seed? 0>,
    <n_jobs:integer? 1>, <progress:flag False>)
attack_examples(<estimator:estimator lr>, <X:rows X>, <y:labels y>, <attack:attack pgd>,
    <random_state:seed? 0>).X_adv
make_attack(<name:choice 'pgd'>, <epsilon:number 0.1>, <norm:choice? None>, <n_steps:integer? None>,
    <bounds:bounds? (0.0, 1.0)>)
load_estimator(<path:path 'nosuch.joblib'>) # fails
load(<path:path 'nosuch.ntk'>) # fails
saved_as(<name:choice 'lab.net'>)(MLP)
class_balanced_indices(<y:labels y>, <n_samples:integer 6>, <random_state:seed? 0>)
load_cifar10(<data_dir:path folder>, <split:choice 'train'>) # fails
load_cifar100(<data_dir:path folder>, <split:choice 'train'>, <labels:choice 'fine'>) # fails
load_mnist(<data_dir:path folder>, <split:choice 'test'>) # fails
load_fashion_mnist(<data_dir:path folder>, <split:choice 'test'>) # fails
load_splits(<data:any 'digits'>, <n_train:integer 30>, <n_test:integer 20>, <random_state:integer 0>)
load_evolution(<path:path folder>) # fails
load_experiment(<out:path folder>) # fails
load_trained(<out:path folder>, <regime:choice 'benign'>, <seed:integer 0>) # fails
write_report(<result:any folder>, <path:path? None>) # fails
KernelEvolution(<data:any 'digits'>, <network:any 'cnn'>, <n_train:integer 1397>, <n_test:integer 400>,
    <n_kernel:integer 200>, <epsilon:number? 0.15>, <attack:any 'pgd'>, <norm:choice? None>,
    <train_steps:integer 10>, <test_steps:integer 20>, <clean_step:flag True>,
    <regimes:any ('benign',)>, <epochs:integer 20>, <flip_epoch:integer? None>, <fractions:any (0.5,)>,
    <learning_rate:number? 0.05>, <momentum:number? 0.9>, <batch_size:integer 128>, <normalize:flag False>)
KernelEvolution(<average_decay:number? None>, <patience:integer? None>, <n_validation:integer 0>,
    <stage2_from:any None>, <stage2_epochs:integer 10>, <stage2_learning_rate:number? 0.01>,
    <dynamics:any ('standard',)>, <stage2:any ('benign',)>, <freeze_state:flag True>, <alpha:number 0.01>,
    <n_features:integer 10>, <seeds:integer 1>, <random_state:integer 0>, <data_dir:path? None>,
    <optimizer:any 'sgd'>)
from_flax(<module:any dense>)
from_stax(<init_fn:callable stax.Dense(3)[0]>, <apply_fn:callable stax.Dense(3)[1]>)
from_haiku(<transformed:any None>) # fails
from_equinox(<module:any None>) # fails
from_nnx(<module:any None>) # fails
KernelDistanceDisplay(<distances:matrix np.eye(2)>, <labels:any ['a', 'b']>,
    <groups:any None>).plot(<ax:any None>)
KernelDistanceDisplay.from_estimator(<estimators:any {'a': clf, 'b': trainer}>, <X:rows X>,
    <kernel:kernel 'trace'>)
EvolutionDisplay(<curves:any {'benign': (np.arange(3), np.ones((2, 3)))}>, <label:any 'a'>,
    <log:flag False>).plot()
SpectrumDisplay(<eigenvalues:any {'a': np.arange(3, 0, -1)}>).plot(<ax:any None>)
SpectrumDisplay.from_estimator(<estimator:any clf>, <X:rows X>, <kernel:kernel 'trace'>, <name:any None>)
RobustnessCurveDisplay(<epsilons:any [0, 1]>, <accuracies:any {'a': [1, 0]}>).plot()
RobustnessCurveDisplay.from_estimator(<estimators:any lr>, <X:rows X>, <y:labels y>, <attack:attack FGSM(0.1)>,
    <epsilons:any [0.1]>, <random_state:seed? 0>)
SpecializationDisplay(<matrix:matrix np.eye(2)>, <title:any ''>).plot(<ax:any None>)
SpecializationDisplay.from_estimator(<estimator:any clf>, <X:rows X>, <y:labels y>)
TransferDisplay(<matrix:matrix np.eye(2)>, <names:any ['a', 'b']>).plot(<ax:any None>)
TransferDisplay.from_estimators(<estimators:any {'a': lr}>, <X:rows X>, <y:labels y>, <attack:attack pgd>)
AttributionDisplay(<images:images images>, <training_images:images images>,
    <top:any TopContributions.of_matrix(K, 1)>, <names:any None>, <labels:any y>).plot(<ax:any None>)
ImageGridDisplay(<images:any {'a': images[:2]}>, <titles:any None>).plot(<ax:any None>)
EvolutionDisplay.from_evolution(<result:any None>, <name:any 'robust'>) # fails
ImageGridDisplay.from_evolution(<result:any None>) # fails
testing.check_kernel(<kernel:kernel kernels.TraceNTK()>, <model:Model model>, <X:images X>, <tangent:flag True>,
    <rtol:number? None>)
testing.check_scaling(<kernel:kernel kernels.TraceNTK()>, <model:Model model>, <X:images X>,
    <factor:number 3.0>)
testing.check_tiling_invariance(<kernel:kernel kernels.TraceNTK()>, <model:Model model>, <X:images X>,
    <tile_rows:any (1, 4)>)
testing.check_positive_semidefinite(<kernel:kernel kernels.TraceNTK()>, <model:Model model>, <X:images X>,
    <tol:number? None>)
"""

POOL = """
None; 'x'; b'x'; True; -1; 0; 1.5; 2**32; 10**400; 1j; float('nan'); float('inf'); 1e300; -0.5; []; [1]; {}; ();
object(); lambda *a, **k: None; lambda *a, **k: 1.0; lambda A, B: B * np.nan; lambda A, B: B[:1];
np.bool_(True); np.int64(3); np.float32(0.5); np.float64('nan'); fractions.Fraction(1, 3);
decimal.Decimal('0.5'); '5'; np.array([1, 2]); jnp.ones(2); np.array(1.0); np.array(3); np.array([]);
np.zeros((0, 4), np.float32); np.array([None, 'a'], object); np.array(['a', 'b']); X; y; Y; K; X[:, :3];
X[:5]; X[None]; X[0]; y[:5]; y - 1; y + 10; sp.csr_matrix(X); pd.DataFrame(X); pd.Series(y); PGD; MLP;
LogisticRegression; Cholesky; net; dense; model; LogisticRegression(); lr; clf; pgd; sgd; state; key;
Clean(); EmpiricalNTKClassifier(); Ridge().fit(X, y); FrozenEstimator(lr); np; int; Path('nosuch'); folder;
'~nosuch/x'; 'a' * 300; '\\0'; ''; slice(None); ...; iter([1]); range(3); {'a': 1}; {1}; frozenset();
datetime.date(2020, 1, 1); (0, 1); (1, 0); (float('nan'), 1.0); (0.0, float('inf')); ('a', 'b');
[[1, 2], [3]]; (1.5,); (-1,); (0,); (2**40,); 'nan'; 'trace'; 'linf'; jax.random.split(key, 3);
jax.random.PRNGKey(0); np.random.RandomState(0); np.random.default_rng(0); 'class'; jnp.float32(2)
""".replace("\n", ";")

# Of an array argument, in terms of its valid value ({0}).
VARIANTS = """
({0})[:5]; ({0})[:0]; ({0})[None]; ({0})[..., :2]; ({0})[..., None]; ({0}).astype(object); ({0}).astype(str);
({0}).astype('>f8'); ({0}) + 1j; ({0}) * np.nan; ({0}) + np.inf; np.ma.array({0}); ({0}).tolist();
jnp.asarray({0}); -1.0 * ({0}); ({0}) * 1e39; ({0}) == 1; ({0}) * 0; ({0}).astype(float); ({0}).ravel();
np.asfortranarray({0}); ({0}).astype(np.float16); ({0}).T;
[list(map(str, np.ravel({0})))];
pd.DataFrame(np.reshape({0}, (len({0}), -1)))
""".replace("\n", ";")

ARRAYS = {"images", "complex", "rows", "matrix", "vector", "labels", "integers", "targets"}


@dataclass(frozen=True)
class Argument:
    name: str
    kind: str
    text: str


@dataclass(frozen=True)
class Template:
    """A valid call: text with the arguments' places, the arguments, and whose shape the result has."""

    text: str
    arguments: tuple[Argument, ...]
    note: str

    @property
    def function(self) -> str:
        return re.sub(r"\(.*?\)(?=\.)|\(.*", "", self.text)

    def call(self, texts: dict[int, str]) -> str:
        """The call as Python, with some arguments, by position, replaced."""
        parts = iter(f"{a.name}={texts.get(i, a.text)}" for i, a in enumerate(self.arguments))
        return re.sub("@", lambda _: next(parts), self.text)


@dataclass(frozen=True)
class Outcome:
    kind: str
    function: str
    call: str
    cause: str = ""


def templates() -> list[Template]:
    found = []
    # a call's further lines are indented
    for line in CALLS.strip().replace("\n    ", " ").splitlines():
        text, _, note = line.partition(" # ")
        arguments = tuple(Argument(*match) for match in re.findall(r"<(\w+):(\w+\??) (.*?)>(?=[,)])", text))
        found.append(Template(re.sub(r"<\w+:\w+\?? .*?>(?=[,)])", "@", text), arguments, note))
    return found


def world() -> dict:
    """The names that calls are made of."""
    names = {}
    exec(PRELUDE, names)
    return names


def generated(seed: int, n: int, only: str | None = None):
    """``n`` calls: template, and texts of the arguments that are replaced, by position."""
    rng = np.random.default_rng(seed)
    chosen = [t for t in templates() if t.arguments and (only is None or only in t.function)]
    pool = [text.strip() for text in POOL.split(";") if text.strip()]
    variants = [text.strip() for text in VARIANTS.split(";") if text.strip()]
    for _ in range(n):
        template = chosen[rng.integers(len(chosen))]
        count = min(len(template.arguments), 1 + (rng.uniform() < 0.15))
        texts = {}
        for i in rng.choice(len(template.arguments), count, replace=False).tolist():
            argument = template.arguments[i]
            own = argument.kind.rstrip("?") in ARRAYS and argument.text != "None" and rng.uniform() < 0.5
            known = variants if own else pool
            text = known[rng.integers(len(known))]
            texts[i] = text.format(argument.text) if own else text
        yield template, texts


class Hung(BaseException):
    """After so many seconds; no ``except Exception`` may catch it."""


def _ring(*_):
    raise Hung


def _set_timers(seconds):
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, CLOCK * seconds)


def outcome(template: Template, texts: dict[int, str], names: dict) -> Outcome:
    """Make a call and judge it."""
    call = template.call(texts)
    before = {number: signal.signal(number, _ring) for number in (signal.SIGALRM, signal.SIGPROF)}
    _set_timers(SECONDS)
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            result = eval(call, names)
        _set_timers(0)
        kind, cause = _judged(result, template, texts, names)
    except Hung:
        kind, cause = "hung", f"over {SECONDS} s"
    except StopIteration:
        # of an iterator that has nothing to give, such as train(..., epochs=0)
        kind, cause = "fine", ""
    except Exception as error:
        _set_timers(0)
        kind, cause = _of_error(error, [template.arguments[i] for i in texts])
    finally:
        _set_timers(0)
        for number, handler in before.items():
            signal.signal(number, handler)
        if "matplotlib.pyplot" in sys.modules:
            sys.modules["matplotlib.pyplot"].close("all")
    return Outcome(kind, template.function, call, cause)


def _of_error(error, arguments) -> tuple[str, str]:
    message = " ".join(str(error).split())[:160]
    frames = traceback.extract_tb(error.__traceback__)
    place = frames[-1]
    cause = f"{type(error).__name__}: {message}"
    own = f"{os.sep}ntkrobust_sk{os.sep}" in place.filename
    checks = re.search(
        r"sklearn.utils.(validation|_param_validation|multiclass|class_weight|_array_api)",
        place.filename.replace(os.sep, "."),
    )
    if place.lineno not in _raises(place.filename) or not (own or checks):
        inside = next((f for f in reversed(frames) if "ntkrobust_sk" in f.filename), place)
        return "obscure", f"{cause} [{Path(inside.filename).name}:{inside.lineno}]"
    said = str(error).lower()
    named = any(a.name.lower().rstrip("_") in said or a.kind.rstrip("?").lower() in said for a in arguments)
    return ("clear" if named else "unnamed"), cause


@cache
def _raises(filename) -> frozenset[int]:
    """Lines of a file that belong to a ``raise`` statement."""
    try:
        tree = ast.parse("".join(linecache.getlines(filename)))
    except SyntaxError:
        return frozenset()
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.Raise))
    return frozenset(line for node in nodes for line in range(node.lineno, node.end_lineno + 1))


def _judged(result, template, texts, names) -> tuple[str, str]:
    """Tell whether a result may be what it is."""
    if not _is_finite(result):
        return "silent", f"not finite: {type(result).__name__}"
    shaped = {a.name: texts.get(i, a.text) for i, a in enumerate(template.arguments)}.get(template.note)
    if shaped is not None:
        wanted = np.shape(eval(shaped, names))
        if np.shape(result) != wanted:
            return "silent", f"shape {np.shape(result)} instead of {wanted}"
    for i, text in texts.items():
        argument = template.arguments[i]
        if not fits(argument.kind, eval(text, names), names):
            return "silent", f"{argument.name}, a {argument.kind}, was {text}"
    return "fine", ""


def fits(kind: str, value, names: dict) -> bool:
    """Tell whether a value is of a kind that a function may take without an error."""
    if kind.endswith("?"):
        return value is None or fits(kind[:-1], value, names)
    is_bool = isinstance(value, bool | np.bool_)
    is_array = hasattr(value, "__array__") or isinstance(value, list | tuple | range)
    scalar = not is_bool and (
        isinstance(value, numbers.Number) or (hasattr(value, "dtype") and np.ndim(value) == 0)
    )
    match kind:
        case "integer":
            return scalar and hasattr(value, "__index__")
        case "number":
            return _is_jax(value) or (scalar and isinstance(value, numbers.Real | np.ndarray) and np.isreal(value))
        case "flag":
            return is_bool
        case "choice":
            return isinstance(value, str)
        case "memory":
            return isinstance(value, str) or fits("number", value, names)
        case "path":
            return isinstance(value, str | os.PathLike)
        case "key":
            return _is_jax(value)
        case "kernel" | "solver":
            return isinstance(value, str) or (callable(value) and not isinstance(value, type))
        case "model" | "Model" | "attack" | "callable" | "estimator":
            known = callable(value) or hasattr(value, "fit") or isinstance(value, names["TrainState"])
            return known and not isinstance(value, type)
        case "attacks":
            values = list(value.values()) if isinstance(value, dict) else value
            values = values if isinstance(values, list | tuple) else [values]
            return value is None or all(fits("attack", one, names) for one in values)
        case "network":
            return hasattr(value, "init") and hasattr(value, "apply")
        case "source":
            known = isinstance(value, str) or hasattr(value, "fit") or hasattr(value, "network")
            return known or value is None or fits("network", value, names)
        case "optimizer":
            return hasattr(value, "update")
        case "bounds":
            return isinstance(value, names["Box"]) or np.shape(value) == (2,)
        case "seed":
            return (scalar and hasattr(value, "__index__")) or isinstance(value, np.random.RandomState)
        case "images" | "matrix" | "vector" | "integers" | "targets":
            # a sparse matrix has a length that is not its own
            return is_array and not isinstance(value, np.ma.MaskedArray) and _kind_of_entries(value) in "biuf"
        case "labels" | "rows":
            return is_array
        case "complex":
            return is_array and _kind_of_entries(value) in "biufc"
    return True


def _is_jax(value) -> bool:
    return type(value).__module__.startswith(("jax", "jaxlib"))


def _kind_of_entries(value) -> str:
    kind = np.asarray(value).dtype.kind
    return "f" if kind == "V" else kind


def _is_finite(value, depth=0) -> bool:
    if isinstance(value, float | complex):
        return bool(np.isfinite(value))
    if hasattr(value, "__array__") and hasattr(value, "dtype"):
        is_floating = not str(value.dtype).startswith("key") and np.dtype(value.dtype).kind in "fc"
        return not is_floating or bool(np.isfinite(np.asarray(value)).all())
    if depth > 4:
        return True
    held = value if isinstance(value, list | tuple) else value.values() if isinstance(value, dict) else ()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        # an optimiser's first loss, a distance that was not found, an open bound
        skipped = {"loss", "distances", "high", "low", "bounds", "fell_at"}
        held = [getattr(value, f.name) for f in dataclasses.fields(value) if f.name not in skipped]
    return all(_is_finite(v, depth + 1) for v in held)


def run(seed: int, n: int, only: str | None = None, start: int = 0, names: dict | None = None):
    """Outcomes of calls number ``start`` to ``n``, one by one."""
    names = world() if names is None else names
    for i, (template, texts) in enumerate(generated(seed, n, only)):
        if i >= start:
            yield i, template.call(texts), lambda template=template, texts=texts: outcome(template, texts, names)


def check_templates(names: dict) -> list[Outcome]:
    """Those valid calls of the table that are not fine."""
    found = [(t, outcome(t, {}, names)) for t in templates()]
    return [o for t, o in found if o.kind != "fine" and t.note != "fails"]


def _child(arguments) -> None:
    """Announce and make calls, one JSON line each."""
    import jax

    jax.config.update("jax_traceback_filtering", "off")
    calls = run(arguments.seed, arguments.n, arguments.only, arguments.start)
    for i, text, make in calls:
        print(json.dumps({"i": i, "call": text}), flush=True)
        print(json.dumps({"i": i, "outcome": dataclasses.asdict(make())}), flush=True)


def _in_children(arguments):
    """All outcomes; a call that ends its process is one too, and the next ones get another process."""
    start = 0
    while start < arguments.n:
        command = [sys.executable, __file__, "--child", "--seed", str(arguments.seed), "-n", str(arguments.n)]
        command += ["--start", str(start)] + (["--only", arguments.only] if arguments.only else [])
        announced = None
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            for line in child.stdout:
                if not line.startswith("{"):
                    continue
                said = json.loads(line)
                start = said["i"] + 1
                if "outcome" in said:
                    announced = None
                    yield Outcome(**said["outcome"])
                else:
                    announced = said["call"]
        if child.returncode != 0:
            if announced is None:
                sys.exit(f"the calls could not be made: status {child.returncode}")
            yield Outcome("crashed", announced.partition("(")[0], announced, f"status {child.returncode}")


def table(outcomes: list[Outcome]) -> str:
    """By function and by cause, with a line that repeats each."""
    kinds = ("fine", "clear", "unnamed", *FAULTS)
    by_function = defaultdict(Counter)
    for o in outcomes:
        by_function[o.function][o.kind] += 1
    lines = [f"{'function':44}" + "".join(f"{kind:>9}" for kind in kinds)]
    for function, counts in sorted(by_function.items(), key=lambda item: -sum(item[1][k] for k in FAULTS)):
        lines.append(f"{function:44}" + "".join(f"{counts[kind] or '':>9}" for kind in kinds))
    total = Counter(o.kind for o in outcomes)
    lines.append(f"{'all':44}" + "".join(f"{total[kind]:>9}" for kind in kinds))
    for kind in ("unnamed", *FAULTS):
        causes = defaultdict(list)
        for o in outcomes:
            if o.kind == kind:
                causes[(o.function, re.sub(r"[\d.]+|'.*?'|0x\w+", "#", o.cause)[:90])].append(o)
        lines += ["", f"{kind}: {total[kind]}"] if causes else []
        for found in sorted(causes.values(), key=len, reverse=True):
            lines.append(f"  {len(found):3} {found[0].cause}\n        {found[0].call}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=inspect.getdoc(sys.modules[__name__]).splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-n", type=int, default=5000, help="calls")
    parser.add_argument("--only", help="functions whose name holds this")
    parser.add_argument("--start", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ.setdefault("MPLBACKEND", "Agg")
    if arguments.child:
        _child(arguments)
        return 0
    outcomes = []
    for o in _in_children(arguments):
        outcomes.append(o)
        if len(outcomes) % 250 == 0:
            print(f"{len(outcomes)} of {arguments.n}", file=sys.stderr, flush=True)
    print(table(outcomes))
    return int(any(o.kind in FAULTS for o in outcomes))


if __name__ == "__main__":
    sys.exit(main())
