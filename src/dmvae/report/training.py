"""Sections about training: the generators' losses, what happens in matching, every stage's curves."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from dmvae.matching import LAG
from dmvae.report.charts import Line, lines
from dmvae.report.html import details, legend, listing, panel, panels, prose
from dmvae.report.run import COLOURS, Run, Trained
from dmvae.training.adversary import idle_adversary
from dmvae.training.health import went_back
from dmvae.transport.arrival import accuracy_of

BINS = ("#5b4fc4", "#3a8fc4", "#2fa37c", "#c79a1c", "#d9652f", "#c2457d", "#8a6fd6", "#7f8791")

DISTANCES = {"whole": "whole latents", "token": "tokens", "pair": "pairs of tokens", "energy": "energy distance"}
TOLD = {
    "told": "tokens told apart",
    "told_whole": "whole latents told apart",
    "told_class": "tokens, the class known",
    "told_whole_class": "whole latents, the class known",
}

EACH = {"distance/told/": "tokens of each class", "distance/told_whole/": "whole latents of each class"}
REFINES = "matching/refines"
"""Logged where an objective hands over to another: the share of turns in which the second one acts."""
HANDED_OVER = (
    ' "Handed over" is the share of turns in which the refining objective moved the latents: 0 while they are far, 1 '
    "once it has taken over."
)

INSIDE = (
    *(f"health/{name}" for name in ("effective_rank", "std", "mean", "gradient_reconstruction", "gradient_matching")),
    *(f"distance/{name}" for name in (*DISTANCES, *TOLD)),
    REFINES,
    LAG,
)
INSIDE_EACH = ("gap/", *EACH)
"""Figures of matching that `health` draws, and prefixes of others; `stage_curves` draws the rest."""
LISTED = 4  # most methods whose figures are listed one by one
HOW_TO_READ = "Bold lines are moving averages, faint lines the logged values. Steep first steps may be above the frame."


def generator(run: Run) -> str:
    """The loss of every generator in one chart."""
    trained = run.trained("generator")
    chart = lines(_overlay(run, trained, "generator/loss"), size=(5.4, 3.0), label="generator loss over steps")
    if not chart:
        return ""
    ends = {training.variants: _last_loss(training) for training in trained}
    found = {names: value for names, value in ends.items() if value is not None}
    text = (
        "A generator learns to turn noise into latents; this is its error while it trains, on the latents of each "
        "method. A curve that flattens early was learned early. Its end says little: a part of the error cannot be "
        "learned away, and that is small for latents that fill few dimensions, and large for white noise. The table "
        "shows how well a generator models its latents, under sampled latents and tokens."
    )
    ended = [f"{found[names]:.4f} for {listing(names)}" for names in found]
    if len(ended) > LISTED:
        ended = [f"{min(found.values()):.4f} to {max(found.values()):.4f}"]
    numbers = f"Mean over the last tenth of training: {', '.join(ended)}" if ended else ""
    numbers += " (the table's is on test latents, of averaged weights)." if ended else ""
    settings = {repr(getattr(run.recipes[v], "generator", None)) for training in trained for v in training.variants}
    same = ""
    if len(trained) > 1:
        same = (
            "All generators have the same settings."
            if len(settings) == 1
            else "The generators differ in their settings, so compare with care."
        )
    words = "".join(prose(part) for part in (text, numbers, same) if part)
    return f'<div class="beside"><div>{_names(run, trained)}{chart}</div><div>{words}</div></div>'


def health(run: Run) -> str:
    """The section on what happened inside matching."""
    trained = run.trained("matching")
    gaps, norms = [], []
    bins = sorted({key for training in trained for key in training.keys if key.startswith("gap/")})
    colours = {key: BINS[i % len(BINS)] for i, key in enumerate(bins)}
    for training in trained:
        title = ", ".join(training.variants)
        gaps.append(_panel(title, [Line(key, colours[key], *training.series(key)) for key in bins], log=True))
        pair = [
            Line("reconstruction", "#2a9d78", *training.series("health/gradient_reconstruction")),
            Line("matching", "#d84f4f", *training.series("health/gradient_matching")),
        ]
        norms.append(_panel(title, pair, log=True))
    spread = [
        _panel(title, _overlay(run, trained, key), note=note)
        for key, title, note in (
            (
                "health/effective_rank",
                "effective rank",
                "how many directions the latents use; a fall towards 1 is collapse",
            ),
            ("health/std", "standard deviation", "spread of the latents in the reference's units"),
            ("health/mean", "mean", "mean offset of the channels in the reference's units; 0 is centred"),
            (
                LAG,
                "the student's lag",
                "its error divided by that of a guess from mean and spread; above 1, it does not know the latents",
            ),
        )
    ]
    parts = [
        prose(f"<strong>{escape(', '.join(training.variants))} went back once</strong>: {escape(line)}.")
        for training in trained
        if (line := went_back(training.folder))
    ]
    parts += approach(trained)
    if any(gaps):
        parts += [
            "<h3>Gap between teacher and student</h3>",
            prose(
                "The teacher knows the reference, the student follows the latents as they change. Both guess the clean "
                "latent from a noisy one; the gap is the squared difference of their guesses (with the objective "
                "velocity_gap, of their velocities), and matching pushes the latents to make it small. Each line is a "
                "range of noise levels: t near 0 is almost pure noise, near 1 "
                "almost clean."
            ),
            legend((key.removeprefix("gap/t").join(["t = ", ""]), colours[key]) for key in bins),
            panels(gaps),
        ]
    if any(spread):
        parts += ["<h3>Rank and spread of the latents, and who follows them</h3>", _names(run, trained), panels(spread)]
    if any(norms):
        parts += [
            "<h3>The two forces</h3>",
            prose(
                "Norm of the gradient that each loss sends to the latents, on a logarithmic axis. If one is far above "
                "the other, it decides where the latents go."
            ),
            legend([("reconstruction", "#2a9d78"), ("matching", "#d84f4f")]),
            panels(norms),
        ]
    return "\n".join(part for part in parts if part)


def approach(trained: Sequence[Trained]) -> list[str]:
    """How far the latents were from the reference while they were matched."""
    colours = dict(zip((*DISTANCES, *TOLD), BINS, strict=False))
    classes = {prefix: sorted({key for t in trained for key in t.keys if key.startswith(prefix)}) for prefix in EACH}
    every = sorted({key.removeprefix(prefix) for prefix, keys in classes.items() for key in keys})
    of = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(every)}
    charts, each = [], []
    for training in trained:
        title = ", ".join(training.variants)
        series = [Line(name, colours[name], *training.series(f"distance/{name}")) for name in DISTANCES]
        charts.append(_panel(f"{title}, distances, × chance", series, log=True))
        series = [_accuracy(training, f"distance/{name}", colours[name]) for name in TOLD]
        charts.append(_panel(f"{title}, told apart, %", series))
        charts.append(_panel(f"{title}, handed over", [Line("refines", BINS[0], *training.series(REFINES))]))
        for prefix, what in EACH.items():
            series = [_accuracy(training, key, of[key.removeprefix(prefix)]) for key in classes[prefix]]
            each.append(_panel(f"{title}, {what}, %", series))
    if not any((*charts, *each)):
        return []
    shown = [(name, colours[key]) for key, name in (DISTANCES | TOLD).items()]
    return [
        "<h3>The way to the reference</h3>",
        prose(
            "Recent latents against samples of the reference. Distances are multiples of the distance between two "
            "samples of the reference, on a logarithmic axis: 1 is equality, and up to 2 counts as arrived. The other "
            "charts show how often a small network tells latents and samples apart: 50 % is chance, and up to 60 % of "
            "the tokens counts as arrived. It is measured for tokens and for whole latents, for both when the network "
            "knows the class, and for each class that has enough of them. The table's figures, from the end of "
            "training, use more latents and train that network for longer."
            + (HANDED_OVER if any(REFINES in t.keys for t in trained) else "")
        ),
        *([legend(shown), panels(charts)] if any(charts) else []),
        *([legend(of.items()), panels(each)] if any(each) else []),
    ]


def _accuracy(training: Trained, key: str, colour: str) -> Line:
    """A logged figure of `multiples` or `details`, turned back into an accuracy in %."""
    steps, told = training.series(key)
    return Line(key, colour, steps, [100 * accuracy_of(x) for x in told])


def curves(run: Run) -> str:
    """Every stage's figures, methods overlaid."""
    blocks = [f"<h3>{escape(stage)}</h3>{charts}" for stage in run.stages() if (charts := stage_curves(run, stage))]
    return prose(HOW_TO_READ) + "\n".join(blocks) if blocks else ""


def stage_curves(run: Run, stage: str) -> str:
    """One stage's figures, methods overlaid: losses first, the rest under a fold."""
    trained = run.trained(stage)
    keys = list(dict.fromkeys(key for training in trained for key in training.keys))
    keys = [key for key in keys if stage != "matching" or not (key in INSIDE or key.startswith(INSIDE_EACH))]
    shown = ("reconstruction/pixel", "reconstruction/perceptual")
    keys = [key for key in keys if not key.endswith("/learning_rate") or _moves(trained, key)]
    main = [key for key in keys if key.endswith("/loss") or key.startswith("test/") or key in shown]
    charts = {key: _panel(key, _overlay(run, trained, key), log=key.endswith("gradient_norm")) for key in keys}
    if not any(charts.values()):
        return ""
    shared = [f"{listing(t.variants)} share one training." for t in trained if len(t.variants) > 1]
    note = f'<p class="note">{" ".join(shared)}</p>' if shared and len(run.variants) > 1 else ""
    note += "".join(
        prose(f"<strong>{escape(', '.join(training.variants))}</strong>: {escape(told)}.")
        for training in trained
        if (told := idle_adversary(training.rows))
    )
    folded = details("More figures of this stage", panels(charts[key] for key in keys if key not in main))
    return f"{_names(run, trained)}{note}{panels(charts[k] for k in main)}{folded}"


def _moves(trained: Sequence[Trained], key: str) -> bool:
    """Whether a figure changes in some training: a chart of one that does not shows nothing."""
    return any(len({*training.series(key)[1]}) > 1 for training in trained)


def _overlay(run: Run, trained: Sequence[Trained], key: str) -> list[Line]:
    return [Line(", ".join(t.variants), _colour(run, t), *t.series(key)) for t in trained]


def _colour(run: Run, training: Trained) -> str:
    """A method's colour; text colour for a training that all methods share."""
    everyone = len(run.variants) > 1 and len(training.variants) == len(run.variants)
    return "currentColor" if everyone else run.colour(training.variants[0])


def _names(run: Run, trained: Sequence[Trained]) -> str:
    return legend((", ".join(t.variants), _colour(run, t)) for t in trained) if len(run.variants) > 1 else ""


def _panel(title: str, series: Sequence[Line], log: bool = False, note: str = "") -> str:
    chart = lines(series, log=log, label=f"{title} over steps")
    return panel(title, chart, escape(note)) if chart else ""


def _last_loss(training: Trained) -> float | None:
    _, values = training.series("generator/loss")
    tail = values[-max(1, len(values) // 10) :]
    return sum(tail) / len(tail) if tail else None
