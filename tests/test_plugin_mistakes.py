"""Plugins that lack something, return another form, or cannot be imported: each is told with its place and the fix."""

import re
from types import SimpleNamespace

import pytest
import torch

import processes
import tiny
from dmvae import cli
from dmvae.datasets.items import require_items
from dmvae.flow.samplers import SamplerConfig
from dmvae.pipeline import execute
from dmvae.recipe import load
from dmvae.references import ReferenceConfig
from dmvae.registry import find, forget, load_plugins, module_of, place_of
from dmvae.stages.reference import require_form, require_samples, require_velocity
from dmvae.training.stage import Stage
from plugin_source import recipe_with_plugins, renamed

WRONG = {
    "class Pool(EncoderConfig):\n    def build": (
        "class Pool(EncoderConfig):\n    def make",
        r"class Pool.*lacks build",
    ),
    "    def loss(self, z, labels, teacher": ("    def lose(self, z, labels, teacher", r"class Moment.*lacks loss"),
    "    def trajectory(": ("    def path(", r"class Leap.*lacks trajectory"),
    "    Config = SharpenConfig": ("    Configs = SharpenConfig", r"class Sharpen.*lacks Config"),
    "@dataclass(frozen=True, kw_only=True)\nclass Blocks": ("class Blocks", r"class Blocks.*without @dataclass"),
}


@pytest.mark.slow
@pytest.mark.parametrize("right", WRONG)
def test_a_plugin_that_lacks_something_is_told_what_and_where(tmp_path, right):
    wrong, message = WRONG[right]
    source = renamed(f"wrong{list(WRONG).index(right)}_")
    assert right in source
    (tmp_path / "wrong.py").write_text(source.replace(right, wrong))
    with pytest.raises(ValueError, match=f"(?s)wrong.py.*{message}|{message}"):
        load(tiny.write(tmp_path, plugins=[str(tmp_path / "wrong.py")]))


@pytest.mark.slow
def test_a_stage_that_comes_after_none_is_told(tmp_path):
    (tmp_path / "lost.py").write_text(renamed("lost_").replace('after="decoder"', 'after="decoding"'))
    result = processes.command("run", str(tiny.write(tmp_path, plugins=[str(tmp_path / "lost.py")])))
    assert result.returncode == 2
    assert "'lost_sharpen': it comes after 'decoding', which is no stage; known: encoder, tokenizer" in result.stderr
    assert "Traceback" not in result.stderr


SHAPES = {
    "nn.AvgPool2d(4)": (
        "nn.AvgPool2d(2)",
        r"encoder: '.*pool' returns torch.float32 \[2, 8, 6, 6\]; its stride and channels say \[2, 8, 3, 3\]",
    ),
    "nn.PixelShuffle(stride)": ("nn.Identity()", r"decoder: '.*blocks' returns"),
    "dtype=torch.uint8)": ("dtype=torch.uint8).flip(3)[..., :8]", r"data: '.*noise_images': item 0 is torch.uint8"),
    "return (2.0 * (labels % 2) - 1).view(-1, 1, 1, 1).expand(n, *self.shape).clone(), labels": (
        "return labels.float(), labels",
        r"two_points' returned samples \[8\] \(torch.float32\) and labels \[8\]; give float32 latents",
    ),
    "    velocity = None\n": ("", r"two_points' returned a reference without `velocity`; set it to None"),
    "b.double().std(dim=(1, 2, 3))).abs()}": (
        "b.double().std()).abs().mean()}",
        r"metric '.*brightness': pairs returned a tensor \[\] for 2 pairs; give \{name: tensor \[2\]\}",
    ),
    "    @property\n    def last_layer": ("    def last_layer", r"decoder: '.*blocks' needs a property last_layer"),
    "return self.out.weight": ("return torch.zeros(3)", r"decoder: '.*blocks' needs a property last_layer"),
    "return self.shuffle(self.out": ("return None, self.shuffle(self.out", r"decoder: '.*blocks' returns tuple"),
    "return z.square().mean(), {": (
        "return z.square(), {",
        r"moment' gives a loss that is a tensor of shape \[8, 4, 3, 3\]; give a scalar",
    ),
    "nn.Conv2d(channels, 8, 3, padding=1), nn.AvgPool2d(4)": (
        "nn.SiLU(inplace=True), nn.Conv2d(channels, 8, 3, padding=1), nn.AvgPool2d(4)",
        r"encoder: '.*pool' changes its input in place",
    ),
    "self.inner(z).relu()": ("self.inner(z.mul_(2)).relu()", r"decoder: '.*blocks' changes its input in place"),
    "return BlockDecoder(": ("BlockDecoder(", r"blocks': build returned None; give an object with forward"),
    "class Moment(Matching):\n": (
        "class Moment(Matching):\n    def new_student(self, *given):\n        pass\n\n",
        r"matching.objective: '.*moment': new_student returned None; give an object with parameters",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("right", SHAPES)
def test_a_plugin_that_returns_another_shape_is_told(tmp_path, right):
    wrong, message = SHAPES[right]
    prefix = f"shape{list(SHAPES).index(right)}_"
    source = renamed(prefix)
    assert right in source
    path = recipe_with_plugins(tmp_path, source.replace(right, wrong), prefix)
    with pytest.raises(ValueError, match=message):
        tiny.run(path, "main")


DECLARED = [
    (
        'reads = ("tokenizer", "matching", "decoder")',
        'reads = ("tokeniser",)',
        "reads names 'tokeniser', .*mean 'tokenizer'",
    ),
    (
        'reads = ("tokenizer", "matching", "decoder")',
        'reads = ("latents",)',
        "reads names 'latents', which is no stage before it",
    ),
    (
        'reads = ("tokenizer", "matching", "decoder")',
        'reads = "tokenizer"',
        "reads is 'tokenizer'; give a tuple of names",
    ),
    (
        "    Config = SharpenConfig",
        '    Config, uses = SharpenConfig, ("loses",)',
        "uses names 'loses', .*mean 'losses'",
    ),
    (
        "    Config = SharpenConfig",
        '    Config, splits = SharpenConfig, ("val",)',
        "splits names 'val', which is no split",
    ),
    ("    Config = SharpenConfig", "    Config = dict", "its Config needs @dataclass"),
    (
        'sharpen", after',
        'sharp-en", after',
        "sharp-en': the name becomes a section and a command; use a-z, 0-9 and _",
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("right", "wrong", "message"), DECLARED)
def test_a_stage_that_declares_what_there_is_not_is_told(tmp_path, right, wrong, message):
    source = renamed("declared_")
    assert right in source
    (tmp_path / "mine.py").write_text(source.replace(right, wrong))
    with pytest.raises(ValueError, match=message):
        load(tiny.write(tmp_path, plugins=[str(tmp_path / "mine.py")]))


@pytest.mark.parametrize("name", ["section", "stages", "data", "variants"])
def test_a_stage_cannot_be_called_as_what_recipes_have_already(tmp_path, name):
    source = renamed("").replace('@stage("sharpen"', f'@stage("{name}"')
    (tmp_path / "mine.py").write_text(source)
    with pytest.raises(ValueError, match=f"stage '{name}': that word has a meaning in recipes already"):
        load(tiny.write(tmp_path, plugins=[str(tmp_path / "mine.py")]))


TRAINS = 'networks.trains["sharpener"] = '
NETWORKS = [
    ("    @register_to_config\n", "", "means", "generator, a ClassMeans, cannot be made from its config"),
    (
        "        return ClassMeans(",
        "        made = ClassMeans(",
        "means",
        "generator: a ClassMeans made from its config has other",
    ),
    (
        "    def sample(self, noise",
        "    def draw(self, noise",
        "means",
        "generator.model: 'nets_class_means': build returned ClassMeans, which lacks sample; give .* loss, sample",
    ),
    (
        TRAINS + "list(",
        TRAINS + "[nn.Parameter(torch.zeros(3))] + list(",
        "main",
        "1 parameter .*'sharpener' would not be",
    ),
    (
        TRAINS + "list(networks.sharpener.parameters())",
        TRAINS + "[]",
        "main",
        "nothing trains in the update 'sharpener'",
    ),
    (TRAINS + "list(", TRAINS + "iter(", "main", r"trains\['sharpener'\] is list_iterator|generator; give a list"),
    (
        "        return networks\n",
        "        networks.averaged = ('blur',)\n        return networks\n",
        "main",
        "averaged names 'blur'",
    ),
    ("        return networks\n", "        return None\n", "main", "build returned NoneType; give Networks"),
    ('"contrast", "contrast gap"', '"psnr", "contrast gap"', "main", "both have a figure 'psnr'; give one another key"),
    (
        '"contrast", "contrast gap"',
        '"contrast", "brightness gap"',
        "main",
        "are both called 'brightness gap.*another title",
    ),
    (
        '"contrast", "contrast gap"',
        '"contrast", "effective rank"',
        "main",
        "'contrast': it is called 'effective rank' in tables, as 'effective_rank' is, .*another title",
    ),
    ('"contrast", "contrast gap"', '"kurtosis", "contrast gap"', "main", "'kurtosis': that key has a meaning"),
    ('"contrast", "contrast gap"', '"contrast.a", "contrast gap"', "main", "'contrast.a': its key is a name in files"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("right", "wrong", "variant", "message"), NETWORKS)
def test_networks_that_would_not_be_saved_are_told_before_any_stage(tmp_path, right, wrong, variant, message):
    source = (
        renamed("nets_").replace(
            "num_classes=num_classes)\n",
            "num_classes=num_classes)\n        made.means = nn.Parameter(torch.zeros(9))\n        return made\n",
        )
        if "made" in wrong
        else renamed("nets_")
    )
    assert right in source
    path = recipe_with_plugins(tmp_path, source.replace(right, wrong), "nets_")
    with pytest.raises(ValueError, match=message):
        tiny.run(path, variant)
    assert not [*(tmp_path / "run").glob("stages/*/done.json")]


RETURNS = {
    "latents.double(), labels": r"samples \[2000, 4, 3, 3\] \(torch.float64\) and labels \[2000\]; give float32",
    "latents, labels.float()": r"labels from 0 to 2 \(torch.float32\); the data has classes 0 to 2, int64",
    "latents.numpy(), labels": r"\['ndarray', 'Tensor'\]; give two tensors",
    "latents": "Tensor; give two tensors",
    "None": "NoneType; give two tensors",
    "latents[1:], labels[1:]": "1999 samples, where 2000 were asked for",
    "latents, labels + 1": r"labels from 1 to 3 \(torch.int64\); the data has classes 0 to 2",
    "latents / 0, labels": "samples that are not finite: ",
}
FORMS = {
    "std=torch.zeros(4)": r"a reference whose `std` is \[0.0, 0.0, 0.0, 0.0\]; all of it has to be finite and above 0",
    "std=1.0": r"a reference whose `std` is 1.0; give a float32 tensor \[4\]",
    "mean=torch.zeros(5)": r"a reference whose `mean` is torch.float32 \[5\]; give a float32 tensor \[4\]",
    "mean=torch.zeros(4).double()": r"a reference whose `mean` is torch.float64 \[4\]",
    "sample=None": "a SimpleNamespace, which has no `sample`",
    "sample=lambda n: None": "a reference whose `sample` cannot be called as sample.n, rng.: too many positional",
}


@pytest.mark.parametrize("returned", RETURNS)
def test_samples_of_another_form_are_told(returned):
    inputs = SimpleNamespace(latent_shape=(4, 3, 3), num_classes=3)
    latents, labels = torch.zeros(2000, 4, 3, 3), torch.arange(2000) % 3
    require_samples("mine", (latents, labels), 2000, inputs)
    with pytest.raises(
        ValueError, match=f"reference.distribution: 'mine' returned {RETURNS[returned]}|{RETURNS[returned]}"
    ):
        require_samples("mine", eval(returned, {"latents": latents, "labels": labels}), 2000, inputs)


@pytest.mark.parametrize("wrong", FORMS)
def test_a_reference_of_another_form_is_told(wrong):
    whole = {"mean": torch.zeros(4), "std": torch.ones(4), "velocity": None, "sample": lambda n, rng: None}
    require_form("mine", SimpleNamespace(**whole), 4)
    with pytest.raises(ValueError, match=f"reference.distribution: 'mine' returned {FORMS[wrong]}"):
        require_form("mine", SimpleNamespace(**(whole | eval(f"dict({wrong})"))), 4)


@pytest.mark.parametrize(
    ("velocity", "closed_form", "told"),
    [
        (None, True, "has no velocity, and its closed_form, .* is True; let the two agree"),
        (lambda z, t, labels: z, False, "has a velocity, and its closed_form, .* is False"),
        (
            lambda z, t, labels: z[:, :1],
            True,
            r"has a velocity that gives a tensor \[8, 1, 3, 3\]; give velocities \[8, 4, 3, 3\]",
        ),
        (lambda z, t, labels: None, True, r"has a velocity that gives NoneType"),
    ],
)
def test_a_closed_form_that_is_none_is_told(velocity, closed_form, told):
    config, z, labels = SimpleNamespace(type="mine", closed_form=closed_form), torch.zeros(8, 4, 3, 3), torch.zeros(8)
    with pytest.raises(ValueError, match=f"reference.distribution: 'mine' {told}"):
        require_velocity(config, SimpleNamespace(velocity=velocity), z, labels)
    good = (lambda z, t, labels: t.view(-1, 1, 1, 1) * z) if closed_form else None
    require_velocity(config, SimpleNamespace(velocity=good), z, labels)


HEAD = """from dataclasses import dataclass
from dmvae.references import ReferenceConfig
from dmvae.registry import register
"""


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1\ndef f(:\n", r"line 2: invalid syntax in 'def f\(:'"),
        ("import nothing_of_that_name\n", "line 1: ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("def f():\n    return [][0]\nf()\n", "line 2: IndexError: list index out of range"),
        (
            f'{HEAD}@register("bare")\nclass Bare(ReferenceConfig):\n    a: int = 1\n    def build(self, i): ...\n',
            r"line 4: class Bare, registered as 'bare' .*: its annotations are no fields without @dataclass",
        ),
        (
            f'{HEAD}@register("near")\n@dataclass(frozen=True)\nclass Near(ReferenceConfig):\n    labeled = False\n'
            "    def build(self, i): ...\n",
            r"line 4: class Near, registered as 'near' .*: nothing reads its 'labeled'; did you mean 'labelled'\?",
        ),
        (
            f'{HEAD}@register("thawed")\n@dataclass\nclass Thawed(ReferenceConfig):\n    def build(self, i): ...\n',
            "line 5: TypeError: cannot inherit non-frozen dataclass from a frozen one",
        ),
        ("import sys\nsys.exit(3)\n", "line 2: SystemExit: 3"),
        (
            "import wrong  # a file that lies beside it, here itself\n",
            "line 1: ModuleNotFoundError: No module named 'wrong'; a file cannot import its neighbours: make a package",
        ),
    ],
)
def test_a_plugin_that_cannot_be_imported_is_told_with_its_line(tmp_path, monkeypatch, capsys, source, message):
    (tmp_path / "wrong.py").write_text(source)
    path = tiny.write(tmp_path, plugins=[str(tmp_path / "wrong.py")])
    for _ in range(2):  # nothing of it is left behind
        with pytest.raises(SystemExit) as stop:
            cli.main(["run", str(path)])
        said = capsys.readouterr().err
        assert stop.value.code == 2
        assert said.count("\n") == 1
        assert re.search(f"plugin {tmp_path}/wrong.py, {message}", said), said
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"^plugin {tmp_path}/wrong.py, {message}"):
        load_plugins(["wrong.py"])  # as --plugins of commands without a recipe


UNEVEN = (
    '@register("uneven")\n@dataclass(frozen=True, kw_only=True)\nclass Uneven(ReferenceConfig):\n'
    "    def build(self, inputs):\n        a, b = (1,)\n"
)


def test_python_s_own_error_of_a_plugin_is_told_with_its_line(tmp_path, capsys):
    """Its text says nothing of where it came up."""
    file = tmp_path / "uneven.py"
    file.write_text(HEAD + UNEVEN)
    load_plugins([file])
    with pytest.raises(ValueError, match="not enough values to unpack") as found:
        find(ReferenceConfig, "uneven")().build(None)
    assert place_of(found.value) == f" ({file}, line 8)"
    assert place_of(ValueError("ours")) == ""
    path = tiny.write(tmp_path, plugins=[str(file)], reference__distribution={"type": "uneven"})
    with pytest.raises(SystemExit):
        cli.main(["run", str(path), "--variant", "matched"])
    assert f"not enough values to unpack (expected 2, got 1) ({file}, line 8)" in capsys.readouterr().err
    forget(module_of(file))


BARE = """
from dataclasses import dataclass
from dmvae.losses.alignment import AlignmentConfig
from dmvae.registry import register


@register("bare")
@dataclass(frozen=True, kw_only=True)
class Bare(AlignmentConfig):
    def projection(self, latent_shape, num_classes, width):
        pass

    def losses(self, projection, z, labels, features, rng):
        pass
"""


def test_an_alignment_that_returns_no_projection_is_told(tmp_path):
    file = tmp_path / "bare.py"
    file.write_text(BARE)
    path = tiny.write(tmp_path, plugins=[str(file)], tokenizer__alignment={"type": "bare"})
    with pytest.raises(
        ValueError, match=r"tokenizer\.alignment: 'bare': projection returned None; give an object with"
    ):
        tiny.run(path, "matched")
    forget(module_of(file))


def test_facts_that_done_json_cannot_hold_are_told(tmp_path):
    class Measured(Stage):
        name = "measured"

        def run(self):
            return {"count": 3, "mean": torch.zeros(2)}

    recipe = SimpleNamespace(section=lambda stage: SamplerConfig())
    job = SimpleNamespace(folder=tmp_path, recipe=recipe, variant="a", reads={}, stage=Measured)
    with pytest.raises(
        ValueError, match=r"stage measured: run returned a 'mean' that done.json cannot hold \(.*Tensor"
    ):
        execute(job)


def test_an_empty_split_is_told():
    class Empty(list):
        classes, labels = ("a",), torch.zeros(0, dtype=torch.int64)

    data = SimpleNamespace(type="mine", channels=3, size=8)
    with pytest.raises(ValueError, match="'mine': the test split has no images"):
        require_items(data, Empty(), "test", ("a",))


def test_a_plugin_that_forgot_to_register_is_named_where_its_name_is_looked_up(tmp_path):
    file = tmp_path / "rings.py"
    file.write_text("class Rings:\n    pass\n")
    path = tiny.write(tmp_path, plugins=[str(file)], reference__distribution={"type": "rings"})
    with pytest.raises(ValueError, match=rf"is called 'rings'.*{re.escape(str(file))} registers nothing: @register"):
        load(path)
    for over in ({"sample__method": "rings"}, {"evaluate__metrics": ["rings"]}):
        with pytest.raises(ValueError, match=r"no (sampler|metric) is called 'rings'.* registers nothing: @register"):
            load(tiny.write(tmp_path, plugins=[str(file)], **over))
    forget(module_of(file))
