"""Files of an earlier version still load: a checkpoint, EMA snapshots, samples and a run directory.

The files under ``tests/data/run_v1`` were written before configuration keys were renamed. They were made by

    python3 -m duet train backend=torch experiment=digits process=v_cosine_uncertain ema=post_hoc
        model.channels=8 model.norm_groups=4 model.channel_multipliers=[1] model.attention_sizes=[] model.heads=1
        trainer.images=256 trainer.batch=64 trainer.log_images=64 trainer.checkpoint_images=128
        trainer.keep_checkpoints=1 lr.warmup_images=64 ema.snapshot_images=128 sample.count=20
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sampler_tables import CASES, make

from diffusion_core.optim import Power
from diffusion_core.runs.checkpoint import load_checkpoint
from diffusion_core.runs.ema_snapshots import find_snapshots, reconstruct
from diffusion_core.runs.run_directory import read_metrics, read_samples

RUN = Path(__file__).parent.parent / "data" / "run_v1"


def test_an_old_checkpoint_loads_with_the_new_names():
    found = load_checkpoint(RUN)
    assert found.images_seen == 256 and found.state.updates == 4
    spec = found.model.spec
    assert (spec.channel_multipliers, spec.attention_resolutions, spec.blocks_per_resolution) == ((1,), (), 1)
    assert found.notes["sampler"]["guidance_scale"] == 1.5
    assert found.notes["trained_for"]["process.timestep_sampling"] == {"name": "uniform"}
    assert found.notes["trained_for"]["process.label_dropout"] == 0.1
    assert not {"guidance", "process.levels", "process.drop_label"} & {
        *found.notes["sampler"],
        *found.notes["trained_for"],
    }


def test_old_snapshots_reproduce_the_average_of_the_checkpoint():
    (found, _) = reconstruct(find_snapshots(RUN), Power(0.05), 256)
    kept = load_checkpoint(RUN).state.ema
    for name, value in found.state.weights.items():
        np.testing.assert_allclose(value, kept[name], rtol=0, atol=1e-7, err_msg=name)


def test_old_samples_and_metrics_are_read():
    images, labels, facts = read_samples(RUN / "samples" / "samples.npz")
    assert images.shape == (20, 8, 8, 1) and len(labels) == 20 and facts["plan"] == "ddim-25"
    assert [line["images_seen"] for line in read_metrics(RUN / "metrics.jsonl")] == [64, 128, 192, 256]


def test_every_plan_equals_the_recorded_one():
    """Every sampler on several processes; sums in another order may differ by a relative 1e-15."""
    for case, tables in CASES:
        plan = make(case).tables()
        for name, wanted in tables.items():
            np.testing.assert_allclose(plan[name], wanted, rtol=1e-15, atol=1e-15, err_msg=f"{case} {name}")
