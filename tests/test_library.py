"""The program as a library: recipes from Python, and the examples."""

import importlib.util
import json
import re
import runpy
import sys
from pathlib import Path
from types import ModuleType

import matplotlib.pyplot as plt
import pytest
import torch

import dmvae
import tiny
from dmvae import library
from dmvae.datasets.instance import Instance, offer
from dmvae.flow.loss import flow_matching_loss
from dmvae.generators.flow import FlowModelConfig
from dmvae.jobs import plan, record
from dmvae.matching import DMD, Adversarial, Context, Transport
from dmvae.recipe import load
from dmvae.references.gaussian import Gaussian
from dmvae.runtime.random import Random
from dmvae.training.flow import FlowTraining, flow_loss

EXAMPLES = Path(__file__).parents[1] / "examples"


class Colours:
    classes = ("dark", "bright")

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int):
        return torch.full((3, 20, 16), 0.2 + 0.6 * (i % 2)), i % 2


@pytest.mark.slow
def test_a_recipe_runs_from_python_on_a_data_set_of_ones_own(tmp_path, plain_report):
    recipe = tiny.RECIPE | {"run": tiny.RECIPE["run"] | {"dir": str(tmp_path / "run")}, "variants": None}
    run = dmvae.run(recipe, train=Colours(48), test=Colours(24), tokenizer={"steps": 2}, **{"generator.steps": 3})
    assert run.variants == ["main"]
    assert run.summary["methods"]["main"]["psnr"] > 0
    assert run.report.exists()
    assert run.tokenizer().config.latent_channels == 4
    assert run.latents()[0][0].shape == (4, 3, 3)
    assert run.pipeline()(class_labels=["bright"], num_inference_steps=2).images[0].size == (12, 12)
    facts = json.loads((run.folder("tokenizer") / "done.json").read_text())
    assert facts["steps"] == 2
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run/stages").glob("*/done.json")}
    dmvae.run(recipe, train=Colours(48), test=Colours(24), tokenizer={"steps": 2}, **{"generator.steps": 3})
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run/stages").glob("*/done.json")} == before
    with pytest.raises(ValueError, match=r"'main' has no finished stage 'encoding'; methods: main"):
        run.folder("encoding")
    with pytest.raises(ValueError, match=r"generator.stepz: no such field; did you mean 'steps'\?"):
        dmvae.run(recipe, train=Colours(48), test=Colours(24), **{"generator.stepz": 3})
    with pytest.raises(ValueError, match=r"data.sizes: with train and test, data has only size.*did you mean 'size'"):
        dmvae.run(recipe, train=Colours(48), test=Colours(24), data={"sizes": 8})
    (tmp_path / "run/main/pipeline").rename(tmp_path / "away")
    with pytest.raises(ValueError, match="main/pipeline: no pipeline is here; `dmvae report` writes them"):
        run.pipeline()
    with pytest.raises(ValueError, match="give both data sets, or neither"):
        dmvae.run(recipe, train=Colours(48))


def test_variants_keep_what_they_say_of_the_shape_of_a_data_set_of_ones_own(tmp_path, monkeypatch):
    variants = {"plain": {}, "large": {"data": {"size": 24}}, "flipped": {"data.flip": True}, "grey": None}
    asked = {"run_dir": tmp_path / "run", "variants.grey.data.channels": 1}
    found = {}
    monkeypatch.setattr(library, "run_to_the_end", lambda recipes, *_: found.update(recipes))
    monkeypatch.setattr(library, "Run", lambda folder: folder)
    for more, size in (({}, 12), ({"data.size": 16}, 16)):
        dmvae.run(tiny.RECIPE | {"variants": variants}, train=Colours(6), test=Colours(4), **asked, **more)
        assert {recipe.data.type for recipe in found.values()} == {"instance"}
        assert [found[name].data.size for name in variants] == [size, more.get("data.size", 24), size, size]
        assert [found[name].data.flip for name in variants] == [False, False, True, False]
        assert [found[name].data.channels for name in variants] == [3, 3, 3, 1]


@pytest.mark.slow
def test_one_variant_runs_from_python(tmp_path, plain_report):
    with pytest.raises(ValueError, match=r"no variant is called 'mached'; did you mean 'matched'\?"):
        dmvae.run(tiny.RECIPE, variant="mached")
    with pytest.raises(ValueError, match=r"run_dir and run\.dir are the same"):
        dmvae.run(tiny.RECIPE, run_dir=tmp_path, run={"dir": "elsewhere"})
    run = dmvae.run(tiny.RECIPE, run_dir=tmp_path / "run", run={"log_every": 2}, variant="kl")
    assert run.report == tmp_path / "run/report.html"
    assert list(run.summary["methods"]) == ["kl"]
    assert run.folder("tokenizer", "kl").is_dir()
    with pytest.raises(ValueError, match="no method is called 'matched'; known: kl"):
        run.folder("tokenizer", "matched")


def test_a_notebook_offers_what_is_imported_on_first_use():
    assert set(dir(dmvae)) >= {*dmvae.__all__, "__version__"}
    assert all(hasattr(dmvae, name) for name in dmvae.__all__)


def test_a_run_is_printed_in_short_and_tells_the_method_that_is_meant(tmp_path):
    recipes = load(tiny.write(tmp_path))
    record(recipes, plan(recipes, tmp_path / "run"), tmp_path / "run", list(recipes))
    run = dmvae.Run(tmp_path / "run")
    assert repr(run) == f"Run('{tmp_path}/run': matched, kl)"
    with pytest.raises(ValueError, match=r"run: no method is called 'mached'; did you mean 'matched'\?"):
        run.pipeline("mached")
    with pytest.raises(ValueError, match="'kl' has no finished stage 'generator'; methods: matched, kl"):
        run.pipeline("kl")


def test_items_become_uint8_squares_of_the_recipe_s_size():
    data = Instance(key=offer(Colours(5), Colours(2)), size=8, channels=1).build("train")
    assert len(data) == 5
    assert data.classes == ("dark", "bright")
    assert data.labels.tolist() == [0, 1, 0, 1, 0]
    image, label = data[1]
    assert image.dtype == torch.uint8
    assert image.shape == (1, 8, 8)
    assert image.unique().tolist() == [204]
    assert label == 1


def test_items_that_are_no_images_are_named():
    class Wrong(Colours):
        def __getitem__(self, i: int):
            return torch.full((3, 4, 4), 200.0), 0

    with pytest.raises(ValueError, match="uint8 or floats in"):
        offer(Wrong(3), Colours(2))


def test_an_objective_needs_nothing_but_tensors_and_networks():
    """What it does by itself is what the stage does with a context."""
    shape, classes = (2, 3, 3), 4
    torch.manual_seed(0)
    z, labels = torch.randn(5, *shape, requires_grad=True), torch.arange(5) % classes
    objective, teacher = DMD(guidance=2.0), Gaussian(shape, classes, 1.0).velocity
    student = objective.new_student(shape, classes, teacher, FlowModelConfig(width=16, depth=1, heads=2))
    context = Context.default(z, student, rng=torch.Generator().manual_seed(3))
    again = Context(Random.of(torch.Generator().manual_seed(3)), classes)
    ours, log = objective.loss(z, labels, teacher, student, context)
    theirs, _ = objective.loss(z, labels, teacher, student, again)
    assert torch.equal(ours, theirs)
    assert any(name.startswith("gap/") for name in log)
    (pull,) = torch.autograd.grad(objective.loss(z, labels, teacher, student)[0], z)
    assert pull.abs().sum() > 0
    loss, _ = objective.student_loss(student, z.detach(), labels, Context(Random(7), classes, label_dropout=0.0))
    rng = Random(7)
    rng.uniform(5)
    t, noise = rng.uniform(5), rng.normal(*z.shape)
    expected = flow_matching_loss(student, z=z.detach(), labels=labels, t=t, noise=noise)
    assert torch.equal(loss, expected)


@pytest.mark.parametrize(
    "wrong",
    [{"label_dropout": "0.1"}, {"null_label": -1}, {"null_label": None}, {"progress": 2}, {"time_distribution": "foo"}],
)
def test_a_context_of_no_sense_is_told(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}: "):
        Context(**({"rng": Random(0), "null_label": 3} | wrong))


def test_what_an_objective_lacks_is_told():
    z, labels = torch.zeros(2, 1, 2, 2), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match="give it a teacher and a student"):
        DMD().loss(z, labels)
    with pytest.raises(ValueError, match="no network's config has num_classes"):
        DMD().loss(z, labels, lambda z_t, t, y: z_t, lambda z_t, t, y: z_t)
    with pytest.raises(ValueError, match=r"give context="):
        Adversarial().student_loss(None, z, labels)


@pytest.mark.slow
def test_the_training_loop_of_ones_own(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["own_trainer.py", "--steps", "10"])
    runpy.run_path(str(EXAMPLES / "own_trainer.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert all(float(re.search(r"gap ([\d.]+)", line)[1]) > 0 for line in lines)
    std = [float(line.rsplit("std ", 1)[1]) for line in lines]
    assert abs(std[-1] - 1) < abs(std[0] - 1), "the latents' spread approaches the reference's"


def pulled(objective, labels, **shape):
    """(gradient at latents near and far, student after it, figures)."""
    z = (torch.arange(1, 9.0).view(8, 1, 1, 1) * Random(0).normal(8, 2, 2, 2)).requires_grad_()
    velocity = FlowModelConfig(width=8, depth=1, heads=1)
    torch.manual_seed(0)
    student = objective.new_student((2, 2, 2), 3, None, velocity)
    loss, log = objective.loss(z, labels, Gaussian((2, 2, 2), 3, 1.0).velocity, student, Context(Random(1), 3))
    loss.backward()
    return z.grad.flatten(1), student, log


def test_the_example_of_an_objective_that_remembers():
    methods = load(EXAMPLES / "dmd_following.yaml")
    example = type(methods["all"].matching.objective)
    assert [methods[name].matching.student_steps for name in ("following", "all")] == [2, 10]
    labels = torch.zeros(8, dtype=torch.int64)
    plain, student, log = pulled(example(guidance=1.0, follow=False, clip=None), labels)
    assert torch.equal(plain, pulled(DMD(guidance=1.0), labels)[0])
    assert log["matching/clipped"] == 0
    assert not torch.equal(student.gaps, torch.ones(8)), "which the student's checkpoints hold"
    clipped, _, log = pulled(example(guidance=1.0, follow=False, clip=1.0), labels)
    assert log["matching/clipped"] > 0.3
    lengths = plain.norm(dim=1)
    assert clipped.norm(dim=1) == pytest.approx(lengths.clamp_max(lengths.median()), rel=1e-5)
    followed, _, log = pulled(example(guidance=1.0, clip=None, time_range=(0.76, 0.98)), labels)
    assert not torch.equal(followed, plain)
    assert log["gap/t0.88"][1] == 8, "all times are in the range"
    held, student, log = pulled(example(guidance=1.0, clip=None, wait=0.9), labels)
    assert log["matching/waits"] == 1, "a lag of 1, until the student has learned"
    assert not held.any()
    example().student_loss(student, torch.randn(8, 2, 2, 2), labels, Context(Random(1), 3))
    assert student.lag != 1
    with pytest.raises(ValueError, match="divergence: forward_kl is not for this example"):
        example(divergence="forward_kl")


SHORTER = {
    "evaluation": {"N = 200": "N = 40"},
    "own_images": {'"steps": 60': '"steps": 6'},
    "own_reference": {'"steps": 20': '"steps": 4', '"steps": 60': '"steps": 6', '"count": 1024': '"count": 128'},
    "own_trainer": {"range(101)": "range(11)", "(0, 20, 100)": "(0, 2, 10)"},
    "quick_start": {
        '"steps": 60': '"steps": 6', '"steps": 40': '"steps": 6', "Discs(512": "Discs(64", "Discs(128": "Discs(32",
        '"count": 128': '"count": 32', '"count": 32, "steps": 8': '"count": 8, "steps": 4',
    },
}  # fmt: skip
"""What the notebooks are run with: whether they run is tested, and not how good their figures are."""


@pytest.mark.slow
@pytest.mark.parametrize("notebook", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_runs_cell_by_cell(tmp_path, notebook, monkeypatch, plain_report):
    cells = json.loads(notebook.read_text())["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    for text, shorter in SHORTER[notebook.stem].items():
        assert any(text in source for source in sources)
        sources = [source.replace(text, shorter) for source in sources]
    code = [compile(source, notebook.name, "exec") for source in sources]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plt, "show", lambda: shown.append(len(plt.gcf().axes)))
    shown: list[int] = []
    module = ModuleType("notebook")
    monkeypatch.setitem(sys.modules, "notebook", module)  # where dataclasses look for the types of their fields
    for cell in code:
        exec(cell, vars(module))
    plt.close("all")
    assert (tmp_path / "runs").exists() or shown
    assert not any(cell.get("outputs") for cell in cells), "notebooks are kept without their output"


def test_the_autoencoder_of_diffusers_in_a_loop_of_ones_own(tmp_path):
    """The example's functions: autoencoder and student train, the teacher stays, the saved folder is diffusers'."""
    from diffusers import AutoencoderKL

    spec = importlib.util.spec_from_file_location("example", EXAMPLES / "match_autoencoder_kl.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    example.BATCH, example.IMAGES = 8, 32
    torch.manual_seed(0)
    example.autoencoder(None).save_pretrained(tmp_path / "start")
    vae = example.autoencoder(str(tmp_path / "start"))
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    teacher, student = example.match(vae, steps=4, teacher_steps=2, weight=0.3)
    assert not any(torch.equal(value, before[name]) for name, value in vae.state_dict().items())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not torch.equal(teacher.final_layer.linear.weight, student.final_layer.linear.weight)
    vae.save_pretrained(tmp_path / "vae")
    again = AutoencoderKL.from_pretrained(tmp_path / "vae").eval()
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        assert torch.equal(again(x).sample, vae.eval()(x).sample)
    assert again.config.scaling_factor == vae.config.scaling_factor != AutoencoderKL().config.scaling_factor


def test_the_loss_of_a_teacher_is_that_of_the_stage():
    z, labels = torch.randn(6, 2, 3, 3), torch.arange(6) % 4
    network = FlowModelConfig(width=16, depth=1, heads=2).build((2, 3, 3), 4)
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.2)  # to a new one all labels are the same
    given = {"label_dropout": 0.5, "time_distribution": "logit_normal", "time_shift": 3.0, "time_mean": -0.5}
    training, context = FlowTraining(steps=1, **given), Context(Random(5), 4, **given)
    assert torch.equal(
        DMD().teacher_loss(network, z, labels, context)[0], flow_loss(network, z, labels, training, Random(5))
    )


def test_a_plain_generator_is_randomness_enough():
    a, b = (Context(torch.Generator().manual_seed(3), 4).rng.normal(2, 3) for _ in range(2))
    assert torch.equal(a, b)
    generator = torch.Generator().manual_seed(3)
    assert torch.equal(Context(generator, 4).rng.normal(2, 3), a)
    assert not torch.equal(Context(generator, 4).rng.normal(2, 3), a)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DMD(divergence="reverse_kll"), "divergence: 'reverse_kll' is not one of 'reverse_kl', "),
        (lambda: DMD(guidance=1e4), "guidance: expected a number, -1000 to 1000, got 10000"),
        (lambda: DMD(guidance="much"), "guidance: expected a number, got 'much'"),
        (lambda: DMD(time_range=(0.0, 1.5)), r"time_range\[1\]: expected a number, 0 to 1, got 1.5"),
        (lambda: DMD(time_range=(0.5,)), "time_range: expected 2 values, got 1"),
        (lambda: Transport(views=["hole"]), "views.*'hole' is not one of"),
        (lambda: Context(Random(0), 4, label_dropout=2.0), "label_dropout: expected a number, 0 to 1, got 2.0"),
        (lambda: Context(0, 4), r"rng: give a torch.Generator or Random\(seed\), got 0"),
    ],
)
def test_objects_of_ones_own_program_are_held_to_the_same_fields(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_randomness_on_another_device_than_the_latents_is_told():
    z, labels = torch.zeros(2, 4, 4, 4, device="meta"), torch.zeros(2, dtype=torch.int64, device="meta")
    with pytest.raises(ValueError, match="rng: it draws on cpu, latents are on meta; give a generator there"):
        Context.given(Context(Random(0), 3), z, labels)


def test_fields_that_fit_are_taken_as_a_recipe_s():
    made = DMD(guidance=2, time_range=[0.1, 0.9])
    assert (made.guidance, made.time_range) == (2.0, (0.1, 0.9))


def test_latents_of_a_trainer_in_bf16_are_matched():
    teacher = Gaussian((4, 4, 4), 3, 1.0).velocity
    labels = torch.zeros(8, dtype=torch.int64)
    losses, pulls = [], []
    for dtype in (torch.float32, torch.bfloat16):
        z = torch.randn(8, 4, 4, 4, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
        loss, _ = DMD(guidance=1.0).loss(z, labels, teacher, lambda z_t, t, labels: 0.5 * z_t, Context(Random(1), 3))
        loss.backward()
        losses.append(loss.item())
        pulls.append(z.grad)
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert pulls[1].dtype == torch.bfloat16
    assert torch.allclose(pulls[1].float(), pulls[0], rtol=0.1, atol=1e-3)
