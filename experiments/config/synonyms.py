"""What other libraries call the keys of Duet: diffusers, PyTorch Lightning, Keras, EDM, guided-diffusion and tutorials.

Each entry of the table is ``KEY or KEY: NAME NAME ... | note``: the keys that may be meant, of which the first that the
command has is offered; the names that other libraries have for them; and a note, for instance where the unit differs. A
key with a group, such as `trainer.max_epochs`, is looked up whole and by its last part.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["other_name"]

_TABLE = """
lr.peak: lr learning_rate base_lr max_lr initial_lr optimiser.lr optimizer.lr trainer.lr init_lr alpha_lr
trainer.images: epochs num_epochs max_epochs n_epochs num_train_epochs epoch train_epochs | the length of a run is
    counted in images seen: epochs times the images of the data set
trainer.images or sampler.steps: max_steps train_steps training_steps num_steps max_train_steps total_steps
    iterations num_iterations n_iter iters train_num_steps lr_anneal_steps max_iters | the length of a run is
    counted in images seen: steps times trainer.batch
sampler.steps or steps: num_inference_steps inference_steps sampling_steps sampling_timesteps ddim_steps nfe
trainer.images or sampler.steps: steps | the length of a run is counted in images seen: steps times trainer.batch;
    sampler.steps is the number of steps of the sampler
trainer.images: duration total_kimg kimg nimg total_images train_images total_nimg
trainer.batch or sample.batch or batch or likelihood.batch: batch_size bs train_batch_size per_device_train_batch_size
    batchsize eval_batch_size batch global_batch_size train_micro_batch_size_per_gpu
trainer.micro_batch: gradient_accumulation_steps accumulate_grad_batches gradient_accumulate_every
    accumulation_steps grad_accum | it is the number of images computed at a time: trainer.batch divided by the
    steps to accumulate
trainer.micro_batch: microbatch micro_batch_size batch_gpu microbatch_size
workers or data.workers: num_workers n_workers dataloader_num_workers num_dataloader_workers worker
model.channels: width base_channels model_channels num_channels dim base_dim ch nf hidden hidden_size features_dim
    base_width filters channels cbase
model.channel_multipliers: dim_mults ch_mult channel_mult ch_mults widths block_out_channels channel_mults
    multipliers | model.channels is the width that they multiply
model.blocks_per_resolution: num_res_blocks layers_per_block num_blocks res_blocks block_depth n_res_blocks depth
model.attention_resolutions: attn_resolutions attention attn_res attn
model.heads: num_heads n_heads attn_heads num_attention_heads
model.head_channels: num_head_channels attention_head_dim attn_dim_head head_dim channels_per_head
model.image_size or data.options.size: image_size resolution img_size size image_resolution sample_size
model.in_channels or data.options.channels: in_channels img_channels image_channels n_channels
model.num_classes: num_classes n_classes class_cond num_class_embeds classes label_dim class_embeds
model.architecture: arch architecture network net unet backbone
process.label_dropout: p_uncond cond_drop_prob label_drop_prob class_dropout_prob cfg_dropout uncond_prob
    dropout_prob cond_dropout
model.dropout: dropout dropout_rate drop_rate
sampler.guidance_scale or guidance_scale: guidance_scale cfg cfg_scale guidance w guidance_weight cond_scale
    cfg_weight
sampler or methods: scheduler noise_scheduler method solver sampling_method
sampler.interval: guidance_interval cfg_interval guidance_range sigma_interval
sampler.rescale: guidance_rescale cfg_rescale
sampler.eta: eta ddim_eta ddim_sampling_eta
process.schedule: process.timestep_respacing | as in process.schedule.respacing=100
sampler.steps: sampler.timestep_respacing | as in sampler.steps=ddim25 or [10,10,20]
sampler.spacing or spacing: timestep_spacing timestep_respacing use_karras_sigmas discretization
sampler.threshold: thresholding dynamic_thresholding dynamic_threshold dynamic_thresholding_ratio
sampler.threshold_max: sample_max_value
sampler.clip: clip_sample clip_sample_range clip_denoised clip_x_start
sample.count or count or images: num_samples n_samples num_images n_images num_sample samples_count number n num
    num_samples_to_generate num_fid_samples sample.count
sample.labels or labels: class_labels class_label class_idx class label y class_ids
seed or sample.seed: seeds random_seed manual_seed global_seed random_state generator
sample.weights or weights: use_ema ema_weights use_main | ema, or weights for the weights themselves
checkpoint or resume or run: ckpt ckpt_path checkpoint_path model_path pretrained pretrained_model_name_or_path load
    load_path network_pkl network weights_path model_dir
resume: resume_from resume_checkpoint resume_from_checkpoint restart continue continue_from restore
from_run or resume: init_from finetune fine_tune base_run from_pretrained
out or hydra.run.dir: out output_dir outdir out_dir save_dir logdir log_dir results_folder output save_path run_dir
    results_dir outputs dir
precision: mixed_precision dtype fp16 bf16 use_fp16 amp half autocast torch_dtype param_dtype fp precision_policy
    mixed_precision_policy | float32, bf16 or float64
optimiser.weight_decay: weight_decay wd decay adam_weight_decay | optimiser=adamw has one
optimiser.beta1: beta1 betas adam_beta1 beta_1
optimiser.beta2: beta2 adam_beta2 beta_2
optimiser.eps: adam_epsilon epsilon adam_eps
optimiser.clip: grad_clip max_grad_norm clip_grad_norm gradient_clip_val clip_grad clipnorm global_clipnorm
    clip_norm gradient_clipping
optimiser: optimizer optim opt
optimiser.beta1: optimizer.beta1
ema.decay or ema: ema_decay ema_rate ema_beta decay_rate ema_max_decay ema_momentum
ema.images: ema_halflife ema_half_life ema_halflife_kimg
lr.warmup_images: warmup warmup_steps lr_warmup_steps num_warmup_steps lr_rampup_kimg warmup_epochs warmup_iters |
    it is counted in images seen: steps times trainer.batch
lr.decay: lr_scheduler lr_schedule scheduler_type lr_decay lr_scheduler_type learning_rate_schedule
lr.floor: min_lr eta_min final_lr lr_min
data: dataset dataset_name train_data data_name
data.options.path or path: data_dir train_data_dir data_path dataset_path folder data_root root image_folder
    data.path data.dir data.root image_dir images_dir
data.options.size: data.size data.image_size data.resolution
data.flip: xflip mirror random_flip hflip horizontal_flip use_horizontal_flip
data.augment: augmentation augment_prob aug
process.schedule or process: beta_schedule noise_schedule schedule schedule_name schedule_type | process=NAME
    chooses schedule and prediction; process.schedule={name: cosine} the schedule alone
process.schedule: timesteps num_train_timesteps diffusion_steps num_timesteps noise_steps n_timesteps
    num_diffusion_timesteps t_max | as in process.schedule.T=1000
process.schedule: beta_start beta_end beta_min beta_max sigma_min sigma_max | as in process.schedule.beta_end=0.02
process.prediction: prediction_type objective parameterization pred_type predict_xstart predict_v model_mean_type
    target pred
process.variance: learn_sigma sigma_small variance_type model_var_type learned_variance
process.bound: use_kl rescaled_kl rescale_learned_sigmas vlb_weight lambda_vlb
process.distance: loss loss_type loss_fn criterion
process.weighting: snr_gamma min_snr min_snr_gamma min_snr_loss_weight loss_weighting weighting_scheme lambda | as
    in process.weighting={name: min_snr, gamma: 5}
process.timestep_sampling: schedule_sampler t_sampler p_mean p_std timestep_sampler
process.offset_noise: noise_offset offset_noise_strength
process.coupling: ot_coupling ot_sampler ot_method minibatch_ot optimal_transport immiscible | as in
    process.coupling.name=optimal_transport
backend.device or device: device gpu gpus cuda accelerator use_gpu use_cuda devices
backend.compile or compile: torch_compile jit_compile xla jit use_compile compile
backend.threads or threads: num_threads n_threads threads omp_num_threads intra_op
backend.deterministic: deterministic use_deterministic_algorithms cudnn_deterministic enable_op_determinism
backend: framework library engine
parallel: ddp strategy distributed num_gpus num_processes world_size nodes num_nodes | python3 -m duet launch N
    COMMAND starts N processes
trainer.checkpoint_images: checkpoint_every save_every save_freq save_interval save_steps checkpointing_steps
    snapshot_ticks ckpt_every ckpt_freq save_and_sample_every state_dump_ticks checkpoint_interval | it is counted
    in images seen: steps times trainer.batch
trainer.log_images: log_every log_freq log_interval logging_steps log_every_n_steps print_every status_nimg | it is
    counted in images seen: steps times trainer.batch
trainer.sample_images: sample_every sample_interval validation_steps sample_freq save_model_epochs save_image_epochs
    | it is counted in images seen: steps times trainer.batch
trainer.keep_checkpoints: checkpoints_total_limit save_total_limit max_to_keep save_top_k keep
tracker: wandb logger report_to use_wandb tensorboard mlflow log_with | TensorBoard's events are always written
tracker.project: wandb_project project_name project
features or metrics: fid | FID is features=inception features.weights=FILE with metrics=[frechet]
metrics: metric kid inception_score measure
likelihood: nll bpd elbo vlb
samples: run fake generated sample_dir samples_path fake_dir images1
reference or data: real real_dir ref ref_path stats reference_stats images2 dataset_stats
debug: test_run smoke fast dry fast_dev_run | debug=fast trains for ten steps
dry_run: dry plan_only
runs: run run_a run_b a b compare
"""


def _read_table() -> dict[str, list[tuple[tuple[str, ...], str]]]:
    """Return by name what it may mean: keys and the note on the first of them."""
    meanings: dict[str, list[tuple[tuple[str, ...], str]]] = {}
    for entry in re.sub(r"\n\s+", " ", _TABLE).strip().splitlines():
        keys, _, rest = entry.partition(": ")
        names, _, note = rest.partition(" | ")
        for name in names.split():
            meanings.setdefault(name, []).append((tuple(keys.split(" or ")), note))
    return meanings


_MEANINGS = _read_table()


def other_name(key: str, known: Iterable[str]) -> tuple[str, str] | None:
    """Return the key that a name of another library stands for, and a note or ""; None if there is no such key.

    Args:
        key: as typed, such as ``batch_size`` or ``trainer.max_epochs``.
        known: the keys of the command.

    Example:
        >>> other_name("batch_size", ["seed", "trainer.batch"])
        ('trainer.batch', '')
    """
    known = set(known)
    name = key.lower().replace("-", "_")
    for part in dict.fromkeys((name, name.rpartition(".")[2])):
        for keys, note in _MEANINGS.get(part, ()):
            for meant in keys:
                if meant in known:
                    return meant, note if meant == keys[0] else ""
    return None
