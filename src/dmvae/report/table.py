"""The table of figures, and the summary in words."""

from __future__ import annotations

import math
from html import escape

from dmvae import config as configs
from dmvae.config import Values
from dmvae.evaluation.metrics import INCEPTION
from dmvae.evaluation.other_figures import FOLDED
from dmvae.evaluation.scores import Figure
from dmvae.options import flat
from dmvae.recipe import method_of
from dmvae.report.figures import of_few, shown
from dmvae.report.html import details, duration, listing, prose
from dmvae.report.run import Run
from dmvae.report.summary import alike, named, outdated, standing
from dmvae.runtime.words import counted

WIDE = 12
"""With more columns, a table is set closely, so that it fits a window of 1280 pixels."""
BESIDE, EXPLAINED = 8, 4
"""Up to BESIDE methods (and groups of seeds) are columns, with a row for each figure, so that a small window shows all
figures; up to EXPLAINED, there is also room for what a figure means. More methods are rows."""


def results(run: Run) -> str:
    """The table with its caption and, under folds, what figures mean and the figures that the table lacks."""
    methods = run.methods
    keys = {key for row in methods.values() for key in row}
    known = shown(keys)
    if not known:
        return ""
    others = {figure.key: figure for figure in FOLDED if figure.key in keys}
    rest = sorted(keys - set(known) - set(others))
    others |= {k: Figure(k, k.replace("_", " "), "", 0, "{:,.5g}", "") for k in rest}
    told = [c for c in (*known.values(), *others.values()) if c.meaning]
    meanings = "".join(f"<dt>{escape(c.title)}</dt><dd>{escape(c.meaning)}</dd>" for c in told)
    return "\n".join(
        [
            _table(run, known),
            f'<p class="note">{_caption(run, known)}</p>',
            _verdicts(run),
            details("What each figure means", f'<dl class="facts">{meanings}</dl>'),
            details("More figures", _table(run, others) if others else ""),
        ]
    )


def _table(run: Run, columns: dict[str, Figure]) -> str:
    arrows = {1: '<span class="arrow" title="higher is better">↑</span>', 0: ""}
    arrows[-1] = arrows[1].replace("higher", "lower").replace("↑", "↓")
    figures = [f"{escape(c.title)}<small>{escape(c.unit)} {arrows[c.better]}</small>" for c in columns.values()]
    best = {key: _best(run, key, column) for key, column in columns.items()}
    ranked = _ranked(run)
    rows: dict[str, list[str]] = {}
    for name, row in run.methods.items():
        cells = []
        for key, column in columns.items():
            text = column.show(row[key]) if key in row else "–"
            marked = text == best[key] and name in ranked
            cells.append(f'<td class="best">{text}</td>' if marked else f"<td>{text}</td>")
        title, _, remark = named(name, run.summary).partition(" (")
        remark = f" <small>({escape(remark)}</small>" if remark else ""
        rows[f'<i style="background:{run.colour(name)}"></i>{escape(title)}{remark}'] = cells
    for method, group in run.summary.get("seeds", {}).items():
        means, spreads, cells = group["mean"], group["spread"], []
        for key, column in columns.items():
            text = column.show(means[key]) if key in means else ""
            mark = ' class="best"' if text and text == best[key] else ""
            cells.append(f"<td{mark}>{text} ± {column.show_spread(spreads[key])}</td>" if text else "<td>–</td>")
        rows[escape(_of_seeds(method, group))] = cells
    if len(rows) <= BESIDE:
        kind, corner, heads = "turned", "Figure", list(rows)
        told = [[f'<td class="meaning">{escape(column.meaning)}</td>' for column in columns.values()]]
        columns_of = [*rows.values(), *(told if len(rows) <= EXPLAINED else [])]
        rows = dict(zip(figures, map(list, zip(*columns_of, strict=True)), strict=True))
    else:
        kind, corner, heads = "figures wide" if len(columns) > WIDE else "figures", "Method", figures
    head = f"<thead><tr>{''.join(f'<th>{text}</th>' for text in (corner, *heads))}</tr></thead>"
    body = "".join(f'<tr><th scope="row">{text}</th>{"".join(cells)}</tr>\n' for text, cells in rows.items())
    return f'<div class="scroll"><table class="{kind}">{head}<tbody>\n{body}</tbody></table></div>'


def _verdicts(run: Run) -> str:
    """Whether latents reached their reference, in words."""
    found = alike(run.summary.get("arrival", {}))
    lines = [f"{listing(names)}: {escape(verdict)}" for verdict, names in found.items()]
    if len(lines) == 1:
        return prose(f"Did latents reach their reference? {lines[0]}.")
    items = "".join(f"<li>{line}</li>" for line in lines)
    return f"{prose('Did latents reach their reference?')}<ul>{items}</ul>" if lines else ""


def _alike(run: Run) -> dict[str, dict[str, float]]:
    """The rows of methods that have ended and were measured as most were; other methods' figures do not compare."""
    apart = {*run.summary.get("unlike", {}), *run.summary.get("not_ended", ())}
    return {name: row for name, row in run.methods.items() if name not in apart}


def _ranked(run: Run) -> Values:
    """Those rows, with the mean in place of the seeds of a method that has several: the best of many seeds would be
    the luckiest one."""
    groups = run.summary.get("seeds", {})
    alone = {name: row for name, row in _alike(run).items() if method_of(name) not in groups}
    return alone | {_of_seeds(method, group): group["mean"] for method, group in groups.items()}


def _of_seeds(method: str, group: Values) -> str:
    return f"{method}, {counted(group['count'], 'seed')}"


def _best(run: Run, key: str, column: Figure) -> str | None:
    """The best value as it is printed, so that equal texts are marked alike; None where all are equal. Methods that do
    not compare are left out."""
    values = [row[key] for row in _ranked(run).values() if not math.isnan(row.get(key, math.nan))]
    if column.better == 0 or len({column.show(value) for value in values}) < 2:
        return None
    return column.show(max(values, key=lambda value: column.better * value))


TRADES = (
    ("psnr", "gfd", "The best tokenizer would be at the lower right: faithful copies, easy to generate."),
    (
        "rfd",
        "grfd",
        "What makes a sample unlike an image. To the right: the decoder, measured by reconstructions. Upwards: the "
        "generator, measured against reconstructions. Best is the lower left.",
    ),
)
"""(figure to the right, figure upwards, what the chart shows)."""


def trade_off(run: Run) -> str:
    """A chart for each of `TRADES`, with a dot for each method; none for fewer than three methods."""
    from dmvae.report import charts  # imports matplotlib, see `write_report`

    parts = []
    for x, y, text in TRADES:
        points = {name: (row.get(x, math.nan), row.get(y, math.nan)) for name, row in _alike(run).items()}
        points = {name: point for name, point in points.items() if all(map(math.isfinite, point))}
        if len(points) < 3:
            continue
        dots = [charts.Dot(name, run.colour(name), *point) for name, point in points.items()]
        across, up = (shown([key])[key].label for key in (x, y))
        parts.append(f'{prose(text)}<div style="max-width:44rem">{charts.scatter(dots, across, up)}</div>')
    return "\n".join(parts)


def _caption(run: Run, columns: dict[str, Figure]) -> str:
    seeds = " (of several seeds: the best mean)" if run.summary.get("seeds") else ""
    bold = f"; the best value of each figure is bold{seeds}" if len(run.methods) > 1 else ""
    parts = [f"Arrows say which way is better{bold}."]
    if any(column.title.startswith(("rFD", "gFD")) for column in columns.values()):
        features = escape(run.features) or "features that the run does not name"
        parts.append(
            f"Frechet distances (rFD of reconstructions, gFD of generated images) compare <b>{features}</b> features. "
        )
        if run.features != INCEPTION:
            parts.append("They are not FID, which uses an Inception network: compare them with each other only.")
    parts.append(escape(of_few(run.measured.values())))
    return " ".join(parts)


def summary(run: Run) -> str:
    """What the run was and what it found, in a paragraph that is made from its files alone."""
    on = " and ".join(dict.fromkeys(_data(run, variant) for variant in run.variants))
    count = "one method" if len(run.variants) == 1 else f"{len(run.variants)} methods"
    text = [f"This run has {count} on {on}: {listing(run.variants)}."]
    text += [
        _compare(run, "gfd", "Of the generated images, those of"),
        _compare(run, "psnr", "Of the reconstructions, those of"),
        _arrived(run),
    ]
    total = sum(seconds for _, _, seconds in run.seconds())
    text.append(f"The finished stages took {duration(total)} in all." if total else "")
    text += [f"{escape(line[0].upper() + line[1:])}." for line in (*standing(run.summary), *outdated(run.summary))]
    return prose(" ".join(filter(None, text)))


def _arrived(run: Run) -> str:
    """The verdicts of `_verdicts`, without their figures."""
    short = {name: of.partition(";")[0].partition(":")[0] for name, of in run.summary.get("arrival", {}).items()}
    told = "; ".join(f"{listing(names)}: {escape(verdict)}" for verdict, names in alike(short).items())
    return f"Did latents reach their reference? {told}." if told else ""


def _data(run: Run, variant: str) -> str:
    data, classes = run.recipes[variant].data, run.classes_of[variant]
    named = f", {len(classes)} classes" if len(classes) > 1 else ""
    return f"<b>{escape(data.type)}</b> ({data.size} × {data.size} pixels{named})"


def _compare(run: Run, key: str, start: str) -> str:
    column = shown([key])[key]
    what = f"{'highest' if column.better > 0 else 'lowest'} {column.title}"
    values = {name: row[key] for name, row in _ranked(run).items() if not math.isnan(row.get(key, math.nan))}
    unit = f" {column.unit}" if column.unit else ""
    if len(values) == 1:
        ((name, value),) = values.items()
        return f"<b>{escape(name)}</b> reaches a {column.title} of {column.show(value)}{unit}."
    best = _best(run, key, column)
    if not values:
        return ""
    if best is None:
        every = len(values) == len(_ranked(run)) and len(_alike(run)) == len(run.methods)
        who = "All methods" if every else listing(values)
        return f"{who} have the same {column.title}, {column.show(next(iter(values.values())))}{unit}."
    first = [name for name, value in values.items() if column.show(value) == best]
    rest = sorted((n for n in values if n not in first), key=lambda n: -column.better * values[n])
    against = ", ".join(f"{column.show(values[n])} for <b>{escape(n)}</b>" for n in rest[:2])
    if len(rest) > 2:
        ends = dict.fromkeys(column.show(values[n]) for n in (rest[0], rest[-1]))
        against = f"{' to '.join(ends)} for the others"
    return f"{start} {listing(first)} have the {what}: {best}{unit}, against {against}."


def differences(run: Run) -> str:
    """A table of the fields in which the methods' recipes differ; "" for one method."""
    given = {
        name: {place: configs.written(value) for place, value in flat(configs.plain(recipe), whole=False).items()}
        for name, recipe in run.recipes.items()
    }
    keys = list(dict.fromkeys(key for fields in given.values() for key in fields))
    sections = {key for key in keys if any(other.startswith(f"{key}.") for other in keys)}
    for fields in given.values():  # where a method lacks a whole section, one row says so
        fields.update({key: "given" for key in sections if any(other.startswith(f"{key}.") for other in fields)})
    keys = [key for key in keys if not any(key.startswith(f"{section}.") for section in sections)]
    keys = [key for key in keys if len({fields.get(key, "–") for fields in given.values()}) > 1]
    if len(given) < 2 or not keys:
        return ""
    head = "".join(f"<th>{escape(name)}</th>" for name in given)
    body = "".join(
        f"<tr><th scope=\"row\"><code>{escape(key)}</code></th>"
        + "".join(f"<td>{escape(fields.get(key, '–'))}</td>" for fields in given.values()) + "</tr>\n"
        for key in keys
    )  # fmt: skip
    head = f"<thead><tr><th>Field</th>{head}</tr></thead>"
    return f'<div class="scroll"><table class="text">{head}<tbody>{body}</tbody></table></div>'
