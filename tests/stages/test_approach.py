"""Matching by transport: samples of the reference are edited, the pull follows the distance, arrival ends the stage."""

import json

import pytest
import torch
import yaml

import tiny
from dmvae import Autoencoder, pipeline
from dmvae.datasets.mixed import stratified
from dmvae.inputs import Inputs
from dmvae.recipe import load
from dmvae.runtime.random import Random
from dmvae.stages import approach, matching
from dmvae.stages.matching import MatchingStage
from dmvae.tokenizers.editor import Editor
from dmvae.training.stage import Batch
from dmvae.training.trainer import Trainer
from dmvae.transport import two_sample

pytestmark = pytest.mark.slow

OVER = {
    "reference.distribution": {"type": "gaussian"},
    "reference.teacher": False,
    "matching": {
        "objective": {"type": "transport", "slices": 6, "samples": 32},
        "balance": "distance",
        "weight": 1.0,
        "noise": "reference",
        "noise_width": 8,
        "noise_bank": 16,
        "batch_size": 12,
        "decoded": 4,
        "steps": 8,
    },
}


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(approach, "RECENT", 24)
    monkeypatch.setattr(approach, "REST", 8)
    for where in ("approach", "matching"):
        monkeypatch.setattr(f"dmvae.stages.{where}.EVERY", 2)
    monkeypatch.setattr(two_sample, "STEPS", 20)


def write(folder, **over):
    return tiny.write(folder, variants={"main": {}}, **{key.replace(".", "__"): v for key, v in OVER.items()} | over)


def match(path):
    """Run the recipe's stage `matching`, on stages before it that tests have in common."""
    return tiny.run(tiny.begin(path, "reference"), only="matching")


def test_every_stage_runs_and_the_log_tells_the_distance(tmp_path, small):
    tiny.run(write(tmp_path, matching__objective__views=["whole", "token", "pair", "convolution"]))
    run = tmp_path / "run/main"
    rows = [json.loads(line) for line in (run / "matching/log.jsonl").read_text().splitlines()]
    keys = {key for row in rows for key in row}
    assert {"distance/whole", "distance/token", "distance/pair", "distance/ratio"} <= keys
    assert {"transport/whole", "transport/token", "transport/pair", "transport/convolution"} <= keys
    assert not (run / "matching/student").exists()
    assert not (run / "reference/teacher").exists()
    model = Autoencoder.from_pretrained(run / "latents/autoencoder")
    assert model.editor.bank.shape == (16, 4, 3, 3)
    assert "gfd" in json.loads((run / "evaluate/metrics.json").read_text())


def test_a_matching_that_names_no_objective_runs_and_trains_no_teacher(tmp_path, small):
    section = {"steps": 8, "batch_size": 12, "noise_groups": 4, "noise_bank": 16, "noise_width": 8}
    path = tiny.write(tmp_path, variants={"main": {}})
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"matching": section}, sort_keys=False))
    match(path)
    run = tmp_path / "run/main"
    keys = {key for line in (run / "matching/log.jsonl").read_text().splitlines() for key in json.loads(line)}
    assert {"distance/ratio", "transport/token", "matching/edit"} <= keys
    assert not (run / "reference/teacher").exists()


def test_a_training_too_short_to_measure_says_that_its_weight_stays(tmp_path, small, monkeypatch, capsys):
    told = "matching.weight stays as it is: the distance is first measured after"
    for recent, said in ((96, True), (24, False)):  # 8 turns of 12 images; measured at turns 0, 2, 4 and 6
        monkeypatch.setattr(approach, "RECENT", recent)
        (tmp_path / str(recent)).mkdir()
        match(write(tmp_path / str(recent)))
        assert (f"{told} {recent} images" in " ".join(capsys.readouterr().out.split())) == said
        rows = (tmp_path / str(recent) / "run/main/matching/log.jsonl").read_text()
        assert ('"distance/ratio"' in rows) != said


def test_few_images_that_repeat_among_the_recent_latents_are_told(tmp_path, small, monkeypatch, capsys):
    told = "of 48 images that repeat among them: it does not come down to 1, and matching.weight grows too far"
    for name, recent, noise, said in (
        ("few", 64, "none", True),
        ("enough", 48, "none", False),
        ("edited", 64, "reference", False),
    ):
        monkeypatch.setattr(approach, "RECENT", recent)
        monkeypatch.setattr(matching, "RECENT", recent)
        (tmp_path / name).mkdir()
        match(write(tmp_path / name, matching__noise=noise))
        assert (told in " ".join(capsys.readouterr().out.split())) == said, name


def test_a_matching_that_no_distance_moves_tells_it_all_the_same(tmp_path, small, monkeypatch):
    monkeypatch.setattr(two_sample, "LEAST", 1)  # held-out items of a class
    found = []
    for name, every in (("told", 2), ("untold", 10**9)):
        monkeypatch.setattr(approach, "SELDOM", every)
        (tmp_path / name).mkdir()
        match(tiny.write(tmp_path / name, variants={"matched": {}}, matching__batch_size=12))
        rows = (tmp_path / name / "run/matched/matching/log.jsonl").read_text()
        for figure in ("token", "energy", "told", "told_whole", "told_class", "told/circle", "told_whole/square"):
            assert (f'"distance/{figure}"' in rows) == (name == "told")
        found.append(tiny.weights(tmp_path / name / "run"))
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(value, found[1][key]) for key, value in found[0].items())


EDITED = {
    "reference": {},
    "assigned": {"matching__noise": "assigned"},
    "grouped": {"matching__noise": "assigned", "matching__noise_groups": 4},
}


@pytest.mark.parametrize("noise", EDITED)
def test_an_image_is_encoded_alike_in_any_batch(tmp_path, small, noise):
    match(write(tmp_path, **EDITED[noise]))
    model = Autoencoder.from_pretrained(tmp_path / "run/main/matching/autoencoder").eval()
    x = torch.randint(256, (5, 3, 12, 12)).float() / 127.5 - 1
    with torch.no_grad():
        whole = model.encode(x).latents
        alone = torch.cat([model.encode(image[None]).latents for image in x])
        model.enable_slicing()
        sliced = model.encode(x).latents
    assert torch.allclose(whole, alone, atol=1e-5)
    assert torch.allclose(whole, sliced, atol=1e-5)
    editor, mu = model.editor, torch.zeros(5, 4, 3, 3)
    if noise != "reference":
        assert editor.prices.std() > 0
    taken = editor.take(x, mu)
    choice = {"reference": 16, "assigned": 1, "grouped": 4}[noise]
    assert len({tuple(y.flatten().tolist()) for y in editor.draw(mu[:1].expand(99, -1, -1, -1), Random(0))}) == choice
    assert torch.equal(taken, editor.take(x + 2 / 255, mu)) == (choice == 1), "content chooses where there is a choice"


def test_samples_are_assigned_at_the_end_by_the_weights_that_are_saved(tmp_path, small, monkeypatch):
    monkeypatch.setattr("dmvae.stages.matching.SETTLING", 20)
    settled, settle = [], Editor.settle
    monkeypatch.setattr(Editor, "settle", lambda self, mu: settled.append(mu) or settle(self, mu))
    jobs = match(write(tmp_path, matching__ema=0.99, **EDITED["grouped"]))
    job = next(job for job in jobs if job.stage.name == "matching")
    images = Inputs(job.recipe, job.variant, job.folder, job.reads, torch.device("cpu")).train_set
    index = stratified(images.labels, 20)
    assert images.labels[index].bincount().min() >= 6, "of all three classes, which take turns"
    chosen = torch.stack([images[int(i)][0] for i in index]).float() / 127.5 - 1
    model = Autoencoder.from_pretrained(job.folder / "autoencoder").eval()
    with torch.no_grad():
        mu = model.editor.normalize(model.describe(chosen)[1])
    assert len(mu) == 20
    assert torch.allclose(settled[-1], mu, atol=1e-5)


def test_an_editor_that_has_not_learned_leaves_the_reference_as_it_is(tmp_path):
    recipe = load(write(tmp_path))["main"]
    model = Inputs(recipe, "main", tmp_path, {}, torch.device("cpu")).new_autoencoder(pretrained=False)
    bank = torch.randn(8, 4, 3, 3)
    mean, std = torch.tensor([1.0, 2, 3, 4]), torch.tensor([0.5, 1, 2, 4])
    edited = model.eval().with_editor(bank, mean, std, width=8)
    assert not any(module.training for module in edited.modules()), "no norm of batches, and no dropout"
    edited.editor.share.data.zero_()
    x = torch.rand(8, 3, 12, 12)
    y = edited.editor.draw(torch.zeros(8, 4, 3, 3), Random(0))
    z = edited.encode(x, Random(0)).latents
    assert torch.allclose((z - mean.view(-1, 1, 1)) / std.view(-1, 1, 1), y, atol=1e-5)
    assert all(torch.equal(value, edited.state_dict()[name]) for name, value in model.state_dict().items())


QUEUED = {
    "queue": {"matching__objective": {"type": "sinkhorn", "queue": 30, "iterations": 5, "views": ["whole"]}},
    "queue of a class": {
        "matching__objective": {"type": "transport", "queue": 30, "labels": True, "slices": 6, "samples": 32},
        "reference__distribution": {"type": "features"},
    },
}
"""More latents than the turns have between the checkpoint and the power cut."""
HANDED = {
    "handed over": {
        "matching__objective": {"type": "hand_over", "far": {"type": "transport", "slices": 6}, "below": 1e5},
        "matching__model": {"width": 8, "depth": 1, "heads": 1},
        "matching__student_steps": 1,
        "matching__balance": "gradient",
        "matching__noise": "none",
    }
}
"""Which measures the distance though no weight follows it."""
TOLD = {
    "told alone": {
        "matching__objective": {"type": "dmd"},
        "matching__model": {"width": 8, "depth": 1, "heads": 1},
        "matching__student_steps": 1,
        "matching__balance": "gradient",
        "matching__noise": "none",
    }
}
"""Of which the distance moves nothing, and is told of latents from both sides of the power cut."""


def test_a_distance_that_was_measured_hands_over(tmp_path, small):
    match(write(tmp_path, run__save_every=3, **HANDED["handed over"]))
    rows = [json.loads(line) for line in (tmp_path / "run/main/matching/log.jsonl").read_text().splitlines()]
    found = {row["step"]: row["matching/refines"] for row in rows if "matching/refines" in row}
    assert found == {step: float(step > 3) for step in (2, 3, 4, 6, 8)}, "the distance is measured in the third turn"
    assert {"transport/token", "gap/t0.12", "distance/token"} <= {key for row in rows for key in row}


@pytest.mark.parametrize("how", EDITED | QUEUED | HANDED | TOLD)
def test_killed_and_started_again_it_ends_in_the_same_weights_and_log(tmp_path, small, monkeypatch, how):
    found, logs = [], []
    if how in TOLD:
        monkeypatch.setattr(approach, "RECENT", 36)
        monkeypatch.setattr(approach, "SELDOM", 4)
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
        path = write(tmp_path / name, run__save_every=2, matching__steps=4, **(EDITED | QUEUED | HANDED | TOLD)[how])
        if name == "stopped":
            with tiny.cut(MatchingStage, 3):
                match(path)
            assert list(path.parent.glob("run/stages/matching-*/checkpoints/step-00000002"))
        match(path)
        found.append(tiny.weights(tmp_path / name / "run"))
        rows = (tmp_path / name / "run/main/matching/log.jsonl").read_text().splitlines()
        logs.append([{k: v for k, v in json.loads(row).items() if k != "seconds"} for row in rows])
    assert logs[0] == logs[1]
    assert how not in TOLD or "distance/whole" in logs[0][-1]
    assert found[0].keys() == found[1].keys()
    assert [name for name, value in found[0].items() if not torch.equal(value, found[1][name])] == []


def test_an_anchor_keeps_edits_small(tmp_path, small):
    last = {}
    for anchor in (None, 0.01):
        folder = tmp_path / str(anchor)
        folder.mkdir()
        over = {"anchor": anchor, "balance": "gradient", "weight": 10.0, "steps": 30, "learning_rate": 1e-2}
        match(write(folder, run__save_every=30, **{f"matching__{k}": v for k, v in over.items()}))
        rows = [json.loads(line) for line in (folder / "run/main/matching/log.jsonl").read_text().splitlines()]
        last[anchor] = [row["matching/edit"] for row in rows if "matching/edit" in row][-1]
    assert last[0.01] < 0.5 * last[None]


def test_arrival_ends_the_stage(tmp_path, small, monkeypatch):
    monkeypatch.setattr(approach, "multiples", lambda *_: {"whole": 1.0, "token": 1.05, "pair": 1.0})
    ends = {"matching__until": "arrived", "matching__steps": 40, "matching__noise": "none"}
    jobs = match(write(tmp_path, **ends))
    facts = next(job for job in jobs if job.stage.name == "matching").facts()
    assert 4 <= facts["steps"] < 20


@pytest.mark.parametrize(
    ("over", "message"),
    [
        (
            {"matching.objective": {"type": "dmd"}, "reference.distribution": {"type": "sphere"}},
            "needs the reference's t",
        ),
        ({"matching.decoded": 13}, "decoded: 13 images of a batch of 12"),
        ({"matching.target": 0.5}, "target: expected a number, 1 to .* got 0.5"),
        ({"matching.weight": 20}, "weight: 20 is where balance: distance starts; give 0.2 to 10"),
        ({"matching.weight": 0}, "give 0.2 to 10, or balance: fixed too, for no pull"),
        ({"matching.objective.slices": 2}, "slices: 2 for 3 kinds of directions"),
        ({"matching.student_warmup": 3}, "student_warmup: 'transport' has no student"),
        ({"matching.student_learning_rate": 1e-3}, "student_learning_rate: 'transport' has no student"),
        (
            {"matching.objective": {"type": "dmd"}, "reference.teacher": True, "matching.student_warmup": 8},
            "student_warmup: 8 of 8 steps leave the tokenizer none",
        ),
        (
            {"matching.anchor": 0.3, "matching.noise": "none"},
            "anchor: 0.3 holds edits .* set matching.noise: reference",
        ),
        ({"matching.anchor": 0.3, "matching.balance": "fixed"}, "anchor: 0.3 .*balance: gradient or distance"),
        ({"matching.noise_groups": 4}, "noise_groups: 4 groups are of .* set matching.noise: assigned"),
        (
            {"matching.noise": "assigned", "matching.noise_groups": 5},
            r"noise_groups: 5 groups of 16 samples \(noise_bank\), found in 12 images .* divides those",
        ),
        ({"matching.noise": "assigned", "matching.noise_groups": 16}, "noise_groups: 16 groups .* at most these"),
        ({"matching.anchor": 0}, "anchor: expected a number, 0.001 to .* got 0"),
        ({"matching.objective.labels": True}, "labels: those of 'gaussian' mean nothing"),
        (
            {
                "matching.objective": {"type": "transport", "labels": True, "slices": 9, "samples": 32},
                "reference.distribution": {"type": "features"},
            },
            "slices: 9, of which 3 .* have 2 such gaps in each of 3 classes: .* at most 6",
        ),
        (
            {"matching.objective": {"type": "normality"}, "matching.batch_size": 4},
            "batch_size: 4; a test of normality on 4 latents",
        ),
        (
            {"matching.until": "arrived"},
            "until: 8 steps leave room for 0 measurements of the distance, and arrival is 3 in a row",
        ),
        (
            {"matching.objective": {"type": "hand_over"}},
            "objective: 8 steps leave room for 0 measurements of the distance, by which 'hand_over' goes; raise steps",
        ),
        (
            {"matching.until": "arrived", "matching.noise": "reference", "matching.steps": 200},
            "until: arrived: samples that are edited are at the reference from the first turn",
        ),
        (
            {"matching.objective": {"type": "velocity_gap"}, "reference.distribution": {"type": "cube"}},
            "'velocity_gap' needs the reference's teacher",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path, over, message):
    path = write(tmp_path)
    with pytest.raises(ValueError, match=message):
        pipeline.run(load(path, over), tmp_path / "run")
    assert not list(tmp_path.glob("run/stages/*"))


def test_only_the_decoded_images_reach_the_decoder(tmp_path, small, monkeypatch):
    jobs = tiny.run(tiny.begin(write(tmp_path), "reference"), only="reference")
    job = next(job for job in jobs if job.stage.name == "matching")
    inputs = Inputs(job.recipe, job.variant, job.folder, job.reads, torch.device("cpu"))
    trainer = Trainer(job.stage(job.recipe.section("matching"), inputs))
    images, labels = inputs.train_set.__getitems__(range(12))
    model, seen = trainer.networks.autoencoder, []
    decode = model.decode
    monkeypatch.setattr(model, "decode", lambda z: seen.append(len(z)) or decode(z))
    batch = Batch(images.float() / 127.5 - 1, labels, 1, 8)
    update = next(trainer.stage.updates(trainer.networks, batch, Random(0)))
    tiny.apply(trainer, update)
    assert seen == [4]
