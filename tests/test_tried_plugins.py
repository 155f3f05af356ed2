"""A plugin's generator and sampler are tried on two latents before anything trains."""

import pytest

import processes
import tiny
from dmvae.inputs import Inputs
from plugin_source import recipe_with_plugins, renamed

WRONG = [
    (
        "torch.zeros(num_classes + 1,",
        "torch.zeros(num_classes,",
        "means",
        r"generator.model: 'tried0_class_means' cannot be run on latents \[2, 4, 3, 3\] with labels \[0, 3\], where 3 "
        r'means "no label": IndexError: .* \(.*mine.py, line \d+\)',
    ),
    (
        "return (self.means[labels] - z).square().mean()",
        "return (self.means[labels] - z).square()",
        "means",
        r"generator.model: 'tried1_class_means': loss returned a tensor \[2, 4, 3, 3\]; give a scalar",
    ),
    (
        "return self.means[labels] + 0.5 * noise",
        "return self.means[labels].mean(dim=1)",
        "means",
        r"generator.model: 'tried2_class_means': sample returned a tensor \[2, 3, 3\]; give latents \[2, 4, 3, 3\]",
    ),
    (
        "yield 0.5 * noise +",
        "return 0.5 * noise +",
        "leaps",
        "sample.method: sampler 'tried3_leap' yielded a tensor",
    ),
    (
        "yield 0.5 * noise + velocity(noise, torch.zeros(len(noise)), labels)",
        "yield from ()",
        "leaps",
        "sample.method: sampler 'tried4_leap' yielded no state",
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize("case", range(len(WRONG)))
def test_a_generator_or_sampler_that_does_not_work_is_told_before_any_stage(tmp_path, case):
    right, wrong, variant, message = WRONG[case]
    source = renamed(f"tried{case}_")
    assert right in source
    path = recipe_with_plugins(tmp_path, source.replace(right, wrong), f"tried{case}_")
    with pytest.raises(ValueError, match=message):
        tiny.run(path, variant)
    assert not [*(tmp_path / "run").glob("stages/*/done.json")]


@pytest.mark.slow
def test_a_file_that_a_plugin_lacks_is_told_with_its_line(tmp_path):
    source = renamed("").replace(
        "        net.channels, net.stride", '        open("nowhere.pt")\n        net.channels, net.stride'
    )
    result = processes.command("run", str(recipe_with_plugins(tmp_path, source)), "--variant", "main")
    line = source[: source.index('open("nowhere')].count("\n") + 1
    assert result.returncode == 1
    assert result.stderr.strip().endswith(f"nowhere.pt ({tmp_path}/mine.py, line {line})")


def test_a_stage_that_takes_a_tokenizer_and_reads_none_is_told(tmp_path):
    recipe = next(iter(tiny.load(tiny.write(tmp_path)).values()))
    with pytest.raises(ValueError, match="add 'tokenizer' to its `reads`"):
        Inputs(recipe, "main", tmp_path, {}, "cpu").tokenizer()
