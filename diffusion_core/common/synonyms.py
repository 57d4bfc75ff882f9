"""What other libraries call the values that Duet chooses by name; errors answer with Duet's own name.

By configuration key or group, names in lower case with ``_`` between words. A name that is not offered where the error
is raised counts for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["OPTIONS", "VALUES"]

_HALF = ("bfloat16", "fp16", "float16", "half", "16", "f16", "mixed", "16_mixed", "bf16_mixed", "bf16_true", "amp")
_FULL = ("fp32", "single", "float", "32", "f32", "no", "full", "tf32", "32_true", "highest", "high")

VALUES: Mapping[str, Mapping[str, str]] = {
    "precision": {
        **dict.fromkeys((*_HALF, "mixed_bfloat16", "mixed_float16"), "bf16"),
        **dict.fromkeys(_FULL, "float32"),
        **dict.fromkeys(("fp64", "double", "64", "f64", "64_true"), "float64"),
    },
    "backend.device": {
        **dict.fromkeys(("gpu", "cuda:0", "gpu:0", "nvidia", "0", "1", "/gpu:0", "rocm"), "cuda"),
        **dict.fromkeys(("none", "cpu:0", "/cpu:0", "mps", "xla", "tpu"), "cpu"),
    },
    "data": {
        **dict.fromkeys(
            ("folder", "imagefolder", "images", "directory", "dir", "custom", "own", "path"), "image_folder"
        ),
        **dict.fromkeys(("numpy", "npy"), "array"),
        **dict.fromkeys(("latents", "latent", "vectors", "floats", "tensors"), "arrays"),
        **dict.fromkeys(
            ("hf", "huggingface", "hugging_face", "parquet", "arrow", "datasets", "hf_dataset"), "hf_folder"
        ),
        **dict.fromkeys(("zipfile", "zip_file", "archive", "edm"), "zip"),
        **dict.fromkeys(("cifar", "cifar_10"), "cifar10"),
        **dict.fromkeys(("fashion", "fashionmnist"), "fashion_mnist"),
        **dict.fromkeys(("flowers", "oxford_flowers102", "oxford_flowers"), "flowers102"),
        **dict.fromkeys(
            ("moons", "swiss_roll", "two_moons", "2d", "points", "spiral", "circles", "checkerboard"), "toy"
        ),
    },
    "ema": {
        **dict.fromkeys(("constant", "plain", "simple", "standard", "true", "default"), "fixed"),
        **dict.fromkeys(("karras", "edm2"), "power"),
        **dict.fromkeys(("edm",), "half_life"),
        **dict.fromkeys(("diffusers", "k_diffusion"), "inverse_gamma"),
    },
    "features": dict.fromkeys(("fid", "inception_v3", "inceptionv3", "inception3"), "inception"),
    "likelihood": {
        **dict.fromkeys(("nll", "bpd", "elbo", "vb"), "vlb"),
        **dict.fromkeys(("flow", "density", "exact"), "ode"),
    },
    "lr.decay": {
        **dict.fromkeys(("none", "constant_with_warmup", "fixed", "no"), "constant"),
        **dict.fromkeys(("cosine_annealing", "cosineannealinglr", "cosine_decay", "cosine_with_restarts"), "cosine"),
        **dict.fromkeys(("step", "steplr", "multistep", "exponential", "piecewise"), "steps"),
        **dict.fromkeys(("rsqrt", "inv_sqrt", "sqrt", "noam"), "inverse_sqrt"),
    },
    "metrics": {
        **dict.fromkeys(("fid", "fd", "frechet_inception_distance", "clean_fid"), "frechet"),
        **dict.fromkeys(("kid", "mmd"), "kernel"),
        **dict.fromkeys(("is", "inception_score", "isc"), "score"),
        **dict.fromkeys(("precision", "recall", "prdc", "precision_recall", "density", "coverage"), "manifold"),
        **dict.fromkeys(("sfid",), "spatial"),
        **dict.fromkeys(("accuracy",), "agreement"),
    },
    "mode": {
        **dict.fromkeys(("img2img", "sdedit", "i2i", "image2image"), "image_to_image"),
        **dict.fromkeys(("inpainting", "fill"), "inpaint"),
        **dict.fromkeys(("interpolation", "lerp", "slerp"), "interpolate"),
    },
    "objective": {
        **dict.fromkeys(("cd", "consistency", "latent_consistency", "lcm"), "consistency_distillation"),
        **dict.fromkeys(("ct", "consistency_model"), "consistency_training"),
        **dict.fromkeys(("ict", "improved_consistency"), "improved_consistency_training"),
        **dict.fromkeys(("ect", "easy_consistency", "ecm"), "easy_consistency_tuning"),
        **dict.fromkeys(("scm", "sct", "simple_consistency"), "continuous_consistency_training"),
        **dict.fromkeys(("scd",), "continuous_consistency_distillation"),
        **dict.fromkeys(("progdist", "progressive", "distillation", "pd"), "progressive_distillation"),
        **dict.fromkeys(("meanflows", "average_velocity"), "mean_flow"),
        **dict.fromkeys(("shortcut_model", "shortcut_models", "one_step"), "shortcut"),
        **dict.fromkeys(("diffusion", "flow_matching", "reflow", "rectified_flow", "none", "mse"), "regression"),
    },
    "optimiser": {
        **dict.fromkeys(("adam_w", "adamw_torch", "adamw8bit", "adamw_8bit"), "adamw"),
        **dict.fromkeys(("adamax", "rmsprop", "adagrad", "amsgrad", "adam8bit"), "adam"),
        **dict.fromkeys(("gradient_descent", "momentum", "nesterov"), "sgd"),
        **dict.fromkeys(("shampoo",), "soap"),
        **dict.fromkeys(("schedulefree", "adamw_schedule_free", "schedule_free_adamw"), "schedule_free"),
    },
    "process": {
        **dict.fromkeys(("ddpm", "linear", "epsilon", "eps", "noise"), "eps_linear"),
        **dict.fromkeys(("cosine", "v", "v_prediction", "velocity"), "v_cosine"),
        **dict.fromkeys(("flow", "flow_matching", "rectified_flow", "rf", "cfm", "fm"), "flow_velocity"),
        **dict.fromkeys(("vp", "vpsde"), "vp_sde"),
        **dict.fromkeys(("ve", "vesde", "smld", "ncsn"), "ve_sde"),
        **dict.fromkeys(("karras",), "edm"),
        **dict.fromkeys(("x0", "sample", "start"), "x0_cosine"),
    },
    "process.coupling": dict.fromkeys(
        ("ot", "exact", "exact_ot", "minibatch_ot", "assignment", "hungarian", "emd"), "optimal_transport"
    ),
    "process.bound": dict.fromkeys(("rescaled_kl", "elbo", "vb", "l_vlb", "nll"), "vlb"),
    "process.variance": {
        **dict.fromkeys(("small", "sigma_small", "posterior"), "fixed_small"),
        **dict.fromkeys(("large", "sigma_large", "beta"), "fixed_large"),
        **dict.fromkeys(("learn_sigma", "range"), "learned_range"),
        "none": "fixed",
    },
    "process.distance": {
        **dict.fromkeys(("l2", "squared", "mean_squared_error"), "mse"),
        **dict.fromkeys(("mae", "mean_absolute_error"), "l1"),
        **dict.fromkeys(("smooth_l1",), "huber"),
    },
    "sampler": {
        **dict.fromkeys(("onestep", "one_step", "multistep", "multi_step", "lcm", "ctm"), "consistency"),
        **dict.fromkeys(("dopri5", "odeint", "rk45", "ode"), "flow_heun"),
        **dict.fromkeys(("euler_a", "k_euler_a", "euler_ancestral_discrete"), "euler_ancestral"),
        **dict.fromkeys(("k_euler", "euler_discrete"), "euler"),
        **dict.fromkeys(
            ("dpm++", "dpmpp", "dpmpp_2m", "dpm++_2m", "dpm_solver++", "dpmsolver++", "dpmsolver"), "dpm_solver"
        ),
        **dict.fromkeys(("dpmpp_2m_karras", "dpm++_2m_karras"), "dpm_solver_karras"),
        **dict.fromkeys(("dpmpp_2m_sde", "dpm++_2m_sde", "dpm++_sde_2m"), "dpm_solver_sde"),
        **dict.fromkeys(("dpm++_sde",), "dpmpp_sde"),
        **dict.fromkeys(("dpmpp_2s_a", "dpm++_2s_a"), "dpmpp_2s_ancestral"),
        **dict.fromkeys(("edm", "karras", "heun_discrete"), "heun"),
        **dict.fromkeys(("ancestral",), "ddpm"),
        **dict.fromkeys(("unipc_multistep", "uni_pc"), "unipc"),
        **dict.fromkeys(("flow_match_euler", "rectified_flow"), "flow_euler"),
        **dict.fromkeys(("ab", "adams"), "adams_bashforth"),
    },
    "schedule": {
        **dict.fromkeys(("squaredcos_cap_v2", "squared_cosine"), "cosine"),
        **dict.fromkeys(("exp",), "exponential"),
        **dict.fromkeys(("const",), "constant"),
        **dict.fromkeys(("quad",), "quadratic"),
        **dict.fromkeys(("trained_betas",), "betas"),
        **dict.fromkeys(("vp", "vpsde"), "vp_sde"),
        **dict.fromkeys(("ve", "vesde"), "ve_sde"),
        **dict.fromkeys(("rectified_flow", "cond_ot", "condot", "linear_interpolant"), "flow_continuous"),
        **dict.fromkeys(("gvp", "trig", "trigflow"), "cosine_continuous"),
        **dict.fromkeys(("polynomial_convex",), "polynomial"),
        **dict.fromkeys(("karras",), "edm"),
    },
    "source": {
        **dict.fromkeys(("hf", "huggingface", "hugging_face", "diffuser"), "diffusers"),
        **dict.fromkeys(("adm", "improved_diffusion", "openai"), "guided_diffusion"),
        **dict.fromkeys(("lucidrains", "denoising_diffusion"), "denoising_diffusion_pytorch"),
        **dict.fromkeys(("karras", "songunet"), "edm"),
        **dict.fromkeys(("ddpm", "tf1"), "ddpm_tf"),
    },
    "target": {
        **dict.fromkeys(("tf", "tensorflow", "keras", "saved_model"), "savedmodel"),
        **dict.fromkeys(("pt", "pytorch", "state_dict", "pth"), "torch"),
        **dict.fromkeys(("hf", "huggingface"), "diffusers"),
    },
    "tracker": {
        **dict.fromkeys(("tensorboard", "false", "off", "no"), "none"),  # every run writes events for TensorBoard
        **dict.fromkeys(("weights_and_biases", "wb"), "wandb"),
    },
}

# The same for the options of what a group chooses.
OPTIONS: Mapping[str, Mapping[str, str]] = {
    "optimiser": {
        **dict.fromkeys(("epsilon", "adam_epsilon"), "eps"),
        **dict.fromkeys(("wd", "l2"), "weight_decay"),
        **dict.fromkeys(("betas", "b1", "beta_1"), "beta1"),
        **dict.fromkeys(("b2", "beta_2"), "beta2"),
        **dict.fromkeys(("grad_clip", "max_grad_norm", "clipnorm", "global_clipnorm"), "clip"),
        **dict.fromkeys(("ns_steps",), "steps"),
        **dict.fromkeys(("precondition_frequency",), "frequency"),
        **dict.fromkeys(("max_precond_dim",), "largest"),
        **dict.fromkeys(("clip_threshold", "clipping_threshold", "d"), "threshold"),
        **dict.fromkeys(("min_dim_size_to_factor",), "smallest"),
        **dict.fromkeys(("decay_rate",), "beta2_decay"),
        **dict.fromkeys(("adjust_lr_fn",), "scale"),
        **dict.fromkeys(("weight_lr_power",), "power"),
    },
    "sampler": {
        **dict.fromkeys(("num_inference_steps", "num_steps", "sampling_steps", "timestep_respacing"), "steps"),
        **dict.fromkeys(("thresholding", "dynamic_threshold", "dynamic_thresholding_ratio", "percentile"), "threshold"),
        **dict.fromkeys(("sample_max_value", "dynamic_thresholding_max"), "threshold_max"),
        **dict.fromkeys(("clip_sample", "clip_sample_range", "clip_denoised", "clip_x_start"), "clip"),
        **dict.fromkeys(("timestep_spacing",), "spacing"),
        **dict.fromkeys(("variance_type",), "variance"),
        **dict.fromkeys(("solver_order",), "order"),
        **dict.fromkeys(("guidance_interval", "cfg_interval", "guidance_range", "sigma_interval"), "interval"),
        **dict.fromkeys(("guidance_rescale", "cfg_rescale"), "rescale"),
        **dict.fromkeys(("guidance", "cfg", "cfg_scale", "guidance_weight", "w"), "guidance_scale"),
        **dict.fromkeys(("classifier_scale", "classifier_guidance"), "classifier"),
    },
    "schedule": {
        **dict.fromkeys(("num_train_timesteps", "timesteps", "num_timesteps", "diffusion_steps", "steps"), "T"),
        **dict.fromkeys(("timestep_respacing", "section_counts"), "respacing"),
        **dict.fromkeys(("rescale_betas_zero_snr", "zero_snr"), "zero_terminal_snr"),
        **dict.fromkeys(("trained_betas",), "betas"),
        **dict.fromkeys(("clip_max", "max_beta_clip"), "max_beta"),
        **dict.fromkeys(("power", "degree", "exponent"), "n"),
    },
}
