"""Runs with SiT: a generator with a pipeline, with REPA, from released weights; a teacher and its student;
the flow model of REPA-E."""

import pytest
import torch
from safetensors.torch import load_file

import tiny
from dmvae import DMVAEPipeline, SiT, cli
from dmvae.inputs import Inputs
from dmvae.jobs import plan
from dmvae.models.artifact import save_network
from dmvae.recipe import load
from dmvae.report.pipelines import write_pipelines
from dmvae.runtime.random import Random
from dmvae.stages.generator import GeneratorStage
from dmvae.training.data import batches
from dmvae.training.trainer import Trainer
from plain_sit import PlainSiT

pytestmark = pytest.mark.slow

MODEL = {"type": "sit", "width": 48, "depth": 2, "heads": 2, "patch_size": 2}
LEFT_OUT = dict.fromkeys(("encoder", "tokenizer", "reference", "matching", "decoder", "autoencoder", "variants"))
PIXELS = LEFT_OUT | {"pretrained": {"type": "identity", "patch": 2}, "evaluate": None, "generator__model": MODEL}
"""Latents [12, 6, 6], of which it makes 3x3 tokens."""
ALIGNED = {"width": 8, "target": {"type": "effnet", "enlarge": 8, "reduce": 32}, "depth": 1}
FILE = "diffusion_pytorch_model.safetensors"


def write(folder, **over):
    return tiny.write(folder, **(PIXELS | over))


def test_a_generator_of_it_is_sampled_and_leaves_a_pipeline(tmp_path):
    path = write(
        tmp_path,
        run__checkpointing=["generator"],
        run__keep_every=3,
        generator__direction=1.0,
        sample__guidance=[1.0, 2.0],
        sample__guidance_channels=5,
    )
    jobs = tiny.run(path)
    stage = tmp_path / "run/main/generator"
    assert type(SiT.from_pretrained(stage / "generator")) is SiT
    assert (stage / "snapshots").is_dir()
    drawn = load_file(tmp_path / "run/main/sample/guidance-2/samples-00001.safetensors")
    (folder,) = write_pipelines(jobs, tmp_path / "run")
    pipeline = DMVAEPipeline.from_pretrained(folder)
    assert type(pipeline.transformer) is SiT
    pipeline.set_progress_bar_config(disable=True)
    seeds = [torch.Generator().manual_seed(seed) for seed in drawn["seeds"].tolist()]
    how = {"guidance_scale": 2.0, "guidance_channels": 5, "num_inference_steps": 2, "output_type": "pt"}
    with torch.autocast("cpu", torch.bfloat16, enabled=False):
        images = pipeline(drawn["labels"].tolist(), generator=seeds, **how).images
    assert (images * 255 - drawn["images"].float()).abs().mean() < 3


def test_alignment_moves_it_and_the_projector_and_a_cut_training_goes_on(tmp_path):
    found = {}
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
        path = write(tmp_path / name, generator__alignment=ALIGNED, sample=None, run__save_every=3)
        if name == "cut":
            with tiny.cut(GeneratorStage, 4):
                tiny.run(path)
        tiny.run(path)
        found[name] = load_file(tmp_path / name / "run/main/generator/generator" / FILE)
    assert all(torch.equal(value, found["cut"][key]) for key, value in found["whole"].items())


def test_alignment_s_gradient_reaches_the_blocks_before_it_and_the_projector(tmp_path):
    path = write(tmp_path, generator__alignment=ALIGNED, sample=None)
    tiny.run(path, only="latents")
    job = plan(load(path), tmp_path / "run")[-1]
    trainer = Trainer(
        job.stage(
            job.recipe.section(job.stage), Inputs(job.recipe, job.variant, job.folder, job.reads, torch.device("cpu"))
        )
    )
    networks, stage = trainer.networks, trainer.stage
    for parameter in networks.generator.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    batch = next(iter(batches(stage, trainer.key, 0, 1, lambda: False)))
    (update,) = stage.updates(networks, batch, Random(0))
    trained = dict(networks.generator.named_parameters()) | dict(
        networks.projector.named_parameters(prefix="projector")
    )
    trained = {name: p for name, p in trained.items() if p.requires_grad}
    assert all(gradient.norm() > 0 for gradient in torch.autograd.grad(update.loss, list(trained.values())))
    found = networks.generator.at_random_times(batch.data, batch.labels, Random(0), networks.depth)
    aligned = networks.projector(found.tokens).square().mean()
    gradients = dict(zip(trained, torch.autograd.grad(aligned, list(trained.values()), allow_unused=True), strict=True))
    reached = {name for name, gradient in gradients.items() if gradient is not None}
    assert {name for name in trained if name not in reached} == {
        name for name in trained if name.startswith(("blocks.1.", "final_layer."))
    }


def test_released_weights_are_where_a_training_starts(tmp_path):
    """REPA's, with time the other way round; one step at learning rate 0 makes them the run's generator."""
    torch.manual_seed(0)
    theirs = PlainSiT(channels=12, side=6, patch=2, width=48, depth=2, heads=2, classes=3, repa=True)
    torch.save({"ema": theirs.state_dict()}, tmp_path / "repa.pt")
    there = tmp_path / "there"
    cli.main(["import", "official-generator", str(tmp_path / "repa.pt"), "--heads", "2", "--out", str(there)])
    frozen = {"start_from": str(there), "steps": 1, "learning_rate": 0, "batch_size": 8, "model": MODEL}
    path = write(tmp_path, generator=frozen)
    tiny.run(path)
    made = SiT.from_pretrained(tmp_path / "run/main/generator/generator").eval()
    z, t, labels = torch.randn(4, 12, 6, 6), torch.tensor([0.0, 0.3, 0.8, 1.0]), torch.arange(4)
    with torch.no_grad():
        assert torch.allclose(made(z, t, labels), -theirs.eval()(z, 1 - t, labels), atol=1e-5)
    wrong = write(tmp_path, generator=frozen | {"model": MODEL | {"depth": 1}})
    with pytest.raises(ValueError, match=r"set generator\.model: {type: sit, .*depth: 2"):
        tiny.run(wrong)
    save_network(made, tmp_path / "flow")
    with pytest.raises(ValueError, match="holds SiT, not LightningDiT"):
        tiny.run(write(tmp_path, generator=frozen | {"model": MODEL | {"type": "flow"}}))


def test_teacher_student_and_the_flow_model_of_repa_e_can_be_one(tmp_path):
    model = MODEL | {"patch_size": 1}
    path = tiny.write(
        tmp_path,
        reference__model=model,
        generator__model=model,
        tokenizer={
            "train_encoder": True,
            "steps": 4,
            "batch_size": 8,
            "alignment": {"type": "repa_e", "width": 8, "depth": 1, "model": model},
        },
    )
    tiny.run(path, "matched", until="matching")
    folder = tmp_path / "run/matched"
    assert type(SiT.from_pretrained(folder / "reference/teacher")) is SiT
    assert type(SiT.from_pretrained(folder / "matching/student")) is SiT
