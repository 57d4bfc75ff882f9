"""Make a checkpoint, for both frameworks, from weights of other projects.

    python3 -m duet import_weights source=diffusers path=DIR out=outputs/imported
    python3 -m duet import_weights source=guided_diffusion path=64x64_diffusion.pt out=DIR \\
        source.image_size=64 source.head_channels=64 source.qkv_order=qkv \\
        process=eps_linear process.schedule.name=cosine
    python3 -m duet import_weights backend=tf source=ddpm_tf path=model.ckpt-790000 out=DIR source.image_size=32
    python3 -m duet import_weights source=edm path=weights.safetensors out=DIR
    python3 -m duet import_weights source=dome272 path=ckpt.pt out=DIR source.ema=ema_ckpt.pt
    python3 -m duet import_weights source=denoising_diffusion_pytorch path=model-10.pt out=DIR source.image_size=32
    python3 -m duet import_weights source=dit path=DiT-XL-2-256x256.pt out=DIR
    python3 -m duet import_weights source=uvit path=nnet.pth out=DIR source.ema=nnet_ema.pth
    python3 -m duet import_weights source=jit path=checkpoint-last.pth out=DIR
    python3 -m duet sample backend=tf from=outputs/imported out=outputs/samples
    python3 -m duet train from=outputs/imported data=image_folder data.options.path=FOLDER trainer.images=64000

TensorFlow's checkpoints are read with backend=tf, and files from before PyTorch 1.6 with backend=torch; all other
files, `.pt`, `.bin`, `.safetensors` and `.npz`, with either. No code in a file is run. The options of a source are
those of its function in `diffusion_core.convert`; source.key=ema chooses one of several networks in a file.
process=NAME replaces the process that the source names or, if it names none, the default, DDPM's; single options are
added as in +process.value_range=[0,1]. The process in use is printed.
"""

from __future__ import annotations

from diffusion_core.networks.weights import parameter_count
from experiments.config import build
from experiments.config.entry import Config, command
from experiments.export.importing import describe_process, import_checkpoint


@command("import_weights")
def main(cfg: Config) -> None:
    """Read the weights, check them, and write one checkpoint."""
    setup = build.import_setup(cfg)
    out = build.new_checkpoint_directory(cfg)
    imported = import_checkpoint(setup, out)
    model = imported.model
    print(f"{setup.source}: {imported.note}")
    print(f"process: {describe_process(model)} ({imported.process_origin})")
    if imported.sampler:
        print(imported.sampler)
    print(f"{parameter_count(model.program):,} parameters, {model.spec.image_size} pixels: checkpoint={out}")


if __name__ == "__main__":
    main()
