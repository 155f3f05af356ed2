"""The HTML report of a run: one file that needs nothing else, for readers who do not know the run."""

from __future__ import annotations

from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from dmvae import config as configs
from dmvae.report import pictures, table
from dmvae.report.html import details, duration, prose, section
from dmvae.report.run import Run
from dmvae.runtime.files import write_text
from dmvae.runtime.yaml_text import as_yaml

if TYPE_CHECKING:
    from dmvae.jobs import Job

HERE = Path(__file__).parent


def write_report(run_dir: Path, jobs: list[Job]) -> Path:
    """Write run_dir/report.html from what the jobs' folders and run_dir/summary.json hold; returns its path.

    A section whose files are missing is left out, so that an unfinished run has a report too.
    """
    from dmvae.report import latent_map, training  # they load matplotlib, for which no run waits at its start

    run = Run(Path(run_dir), jobs)
    sections = {
        "results": section("results", "Results", table.results(run)),
        "tradeoff": section("tradeoff", "Reconstruction against generation", table.trade_off(run)),
        "samples": section("samples", "Generated images", pictures.samples(run)),
        "copies": section("copies", "Reconstructions", pictures.reconstructions(run)),
        "map": section("map", "Where the latents lie", latent_map.latent_map(run)),
        "generator": section("generator", "How the generators learn", training.generator(run)),
        "matching": section("matching", "Inside matching", training.health(run)),
        "training": section("training", "Training curves", training.curves(run)),
        "run": section("run", "What was run", what_was_run(run)),
    }
    short = ("Results", "Trade-off", "Samples", "Reconstructions", "Map", "Generator", "Matching", "Training", "Run")
    titles = dict(zip(sections, short, strict=True))
    page = Template((HERE / "page.html").read_text(encoding="utf-8")).substitute(
        title=escape(run.name),
        style=(HERE / "page.css").read_text(encoding="utf-8"),
        summary=table.summary(run),
        menu="".join(f'<a href="#{key}">{titles[key]}</a>' for key, body in sections.items() if body),
        body="\n".join(filter(None, sections.values())),
    )
    path = Path(run_dir) / "report.html"
    write_text(path, page)
    return path


def what_was_run(run: Run) -> str:
    """The section on times, machine and versions, and the recipes with their differences."""
    parts = [_times(run)]
    environment = run.summary.get("environment") or {}
    facts = "".join(f"<dt>{escape(str(k))}</dt><dd>{escape(str(v))}</dd>" for k, v in environment.items())
    parts.append(f'<h3>Machine and versions</h3><dl class="facts">{facts}</dl>' if facts else "")
    differ = table.differences(run)
    parts.append(f"<h3>What differs between the methods</h3>{differ}" if differ else "")
    recipes = [details(v, f"<pre>{escape(as_yaml(configs.plain(of)))}</pre>") for v, of in run.recipes.items()]
    parts += ["<h3>Resolved recipes</h3>", *recipes] if recipes else []
    return "\n".join(filter(None, parts))


def _times(run: Run) -> str:
    rows = run.seconds()
    if not rows:
        return ""
    longest = max(seconds for _, _, seconds in rows) or 1.0
    bars = ""
    for stage, names, seconds in rows:
        who = "all methods" if len(names) == len(run.variants) > 1 else ", ".join(names)
        colour = "currentColor" if len(names) > 1 else run.colour(names[0])
        bars += (
            f'<div class="bar"><span>{escape(stage)} <small>{escape(who)}</small></span>'
            f'<span class="track"><i style="width:{100 * seconds / longest:.2f}%;background:{colour}"></i></span>'
            f"<span>{duration(seconds)}</span></div>\n"
        )
    total = duration(sum(seconds for _, _, seconds in rows))
    text = f"Wall-clock time per stage, {total} in all. A stage that methods share ran once."
    return f'<h3>Time per stage</h3>{prose(text)}<div class="bars">{bars}</div>'
