"""
A Gram matrix on disk, killed and resumed
=========================================

A large Gram matrix takes hours, and much can happen in that time. With ``store=`` every tile is written to a
folder as soon as it is finished, and the same call goes on from there. Here one process begins and is killed, a
Dask cluster finishes the matrix, and then more images come.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import joblib
import matplotlib.pyplot as plt
import numpy as np
import zarr
from distributed import Client, LocalCluster

from ntkrobust_sk import MLP, AdversarialKernelTrainer, gram, load_digits_images

X, y = load_digits_images()
model = AdversarialKernelTrainer(MLP(widths=(512, 512)), max_epochs=5, random_state=0).fit(X, y).model_
folder = tempfile.TemporaryDirectory()
store = Path(folder.name) / "K.zarr"


def finished():
    # each tile is a file of a plain zarr array
    return {(int(f.parent.name), int(f.name)) for f in store.glob("c/*/*") if f.name.isdigit()}


# %%
# Another process begins with 1,280 images. When 40 tiles are on disk, it is killed, with no time to tidy up.
joblib.dump((model, X[:1280]), Path(folder.name) / "job.joblib")
program = "import joblib; from ntkrobust_sk import gram; gram('trace', *joblib.load('job.joblib'), store='K.zarr')"
child = subprocess.Popen([sys.executable, "-c", program], cwd=folder.name)
while len(finished()) < 40 and child.poll() is None:
    time.sleep(0.005)
child.kill()
print("exit status:", child.wait())
stages = {"the process that was killed": finished()}

# %%
# The same call goes on, now on a Dask cluster, here two threads of this process: finished tiles are kept, the
# others computed. With a real cluster, ``Client("tcp://scheduler:8786")``, nothing else changes.
workers = LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None)
with workers, Client(workers), joblib.parallel_config(backend="dask"):
    gram("trace", model, X[:1280], store=store)
stages["Dask, after it"] = finished()

# %%
# With more images, only new tiles are computed; those below the diagonal are mirror images of those above it. The
# matrix is the same as without a store.
K = gram("trace", model, X, store=store)
stages["later, for more images"] = finished()
print("largest relative difference:", abs(K[:200] - gram("trace", model, X[:200], X)).max() / K.max())

rows = zarr.open(store, mode="r").chunks[0]
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4.6), layout="constrained")
seen = set()
for (name, tiles), color in zip(stages.items(), ["#2f6db3", "#e69f00", "#a0a0a0"], strict=True):
    i, j = np.transpose(sorted(tiles - seen))
    left.scatter(j, i, marker="s", s=95, color=color, label=f"{name}: {len(i)}")
    seen = tiles
left.set(title=f"Who computed the {len(seen)} tiles", aspect="equal", ylim=left.get_ylim()[::-1])
left.set(xlabel=f"tile ({rows} columns)", ylabel=f"tile ({rows} rows)", xticks=range(0, 15, 2))
figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
K -= K.mean(0) + K.mean(0)[:, None] - K.mean()
order, ends = np.argsort(y, kind="stable"), np.searchsorted(np.sort(y), range(11))
cosines = (K / np.sqrt(np.outer(K.diagonal(), K.diagonal())))[order][:, order]
drawn = right.imshow(cosines, cmap="RdBu_r", vmin=-1, vmax=1)
for set_ticks in (right.set_xticks, right.set_yticks):
    set_ticks((ends[1:] + ends[:-1]) / 2, range(10))
right.set(title="The matrix, centred, sorted by digit", xlabel="digit", ylabel="digit")
figure.colorbar(drawn, ax=right, label="cosine between centred tangent features", shrink=0.8)
plt.show()
folder.cleanup()
