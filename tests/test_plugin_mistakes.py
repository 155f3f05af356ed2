"""Plugins that lack something, or return another form: each is told with its place and the fix."""

from types import SimpleNamespace

import pytest
import torch

import processes
import tiny
from dmvae.datasets.items import require_items
from dmvae.flow.samplers import SamplerConfig
from dmvae.pipeline import execute
from dmvae.recipe import load
from dmvae.registry import forget, module_of
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
    "return MemoryDataset(": (
        """changes = {"__getitem__": lambda self, i: (torch.randint(256, images.shape[1:]).byte(), i % 3)}
        return type("Changing", (MemoryDataset,), changes)(""",
        r"data: '.*noise_images': item 0 is another image each time it is read, so no run could be repeated or go on",
    ),
    "labels = rng.integers(self.num_classes, n)": (
        "labels = torch.randint(self.num_classes, (n,))",
        r"reference.distribution: '.*two_points': the same `rng` gave other samples the second time",
    ),
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
