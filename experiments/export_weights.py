"""Write the weights of a checkpoint as ONNX, diffusers, a PyTorch state dict or SavedModel.

    python3 -m duet export_weights target=diffusers checkpoint=RUN out=DIR [target.variance=fixed_large]

    diffusers    a directory for `DDPMPipeline.from_pretrained` and, under unet, `UNet2DModel.from_pretrained`
    state_dict   the names of another project, as safetensors: target.project=guided_diffusion, ddpm_tf, ddpm_torch,
                 edm, dit, sit, uvit, jit, dome272 or denoising_diffusion_pytorch
    onnx         a file for any ONNX runtime; see `diffusion_core.convert.onnx` for its inputs
    torch        a state dict as safetensors, with backend=torch
    savedmodel   a SavedModel of TensorFlow, with backend=tf
    native       the format of a backend itself; torch and savedmodel are made from it by their files in configs/target

The last four are read back and compared with the reference on `target.check` images (default 2; 0 skips the check). The
difference is printed; a file that computes something else is deleted. Of the first two, the network is read back.
`weights` selects a moving average (ema, ema1 ...) or the last weights (weights). The targets are in
`experiments.export.targets`.
"""

from __future__ import annotations

from experiments.config import build
from experiments.config.convert import plain
from experiments.config.entry import Config, command
from experiments.export.exporting import export_checkpoint


@command("export_weights")
def main(cfg: Config) -> None:
    """Load a checkpoint and write its weights in another format."""
    target, out = plain(cfg.target), build.directory(cfg, "out", "path to write")
    line = export_checkpoint(cfg.checkpoint, out, target, cfg.weights, build.backend_setup(cfg))
    print(f"{line}: {out}")


if __name__ == "__main__":
    main()
