"""One page that a drummer can read: gates first, then class balance, dynamics, openness, techniques, splits.

Belongs here: turning a health report into one self-contained HTML file. Does not belong here: any figure that is not in the report.
No script, no request, everything escaped; equal reports give equal bytes (no clock).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, StrictUndefined

from beatsight_assets.verdict import Rule, Verdict, shown

VERSION = "2"
BUCKET_COLOURS = {"ghost": "#c9b8f5", "light": "#8fb4f7", "medium": "#3f7fe0", "accent": "#1b3f91", "unknown": "#c4c7ce"}

CSS = """
:root{--ink:#16181d;--soft:#5d6472;--line:#e2e5ea;--card:#fff;--page:#f5f6f8;--good:#12803c;--bad:#b3261e;--warn:#8a5a00;--real:#2f6fde;--made:#e08a2e}
@media(prefers-color-scheme:dark){:root{--ink:#e8eaee;--soft:#9aa2b1;--line:#30353f;--card:#1c2027;--page:#12151a;--good:#4cc27a;--bad:#ff8a80;--warn:#e5b454}}
*{box-sizing:border-box}body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1080px;margin:0 auto;padding:28px 20px 60px}h1{font-size:26px;margin:0}h2{font-size:18px;margin:0 0 4px}
.note{color:var(--soft);margin:0 0 12px;font-size:13.5px}.head{display:flex;gap:14px;align-items:center;flex-wrap:wrap;margin-bottom:4px}
.path{color:var(--soft);font:13px ui-monospace,Menlo,Consolas,monospace;overflow-wrap:anywhere}
.badge{font-weight:700;padding:2px 12px;border-radius:999px;border:2px solid}.pass{color:var(--good)}.fail{color:var(--bad)}.waived{color:var(--warn)}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(132px,1fr));gap:10px;margin:18px 0}
.cards div,section{background:var(--card);border:1px solid var(--line);border-radius:10px}.cards div{padding:10px 14px}
.cards b{display:block;font-size:21px;font-variant-numeric:tabular-nums}.cards span{color:var(--soft);font-size:13px}
section{padding:18px 20px;margin:14px 0;overflow-x:auto}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th{text-align:left;color:var(--soft);font-weight:600;font-size:13px}th,td{padding:4px 10px 4px 0;border-bottom:1px solid var(--line);vertical-align:middle}
tr:last-child td{border-bottom:0}.n{text-align:right}.bar{width:42%;min-width:140px}svg{display:block;width:100%;height:14px;border-radius:3px}
.tall svg{height:110px}.tall table{table-layout:fixed}.tall td{padding-right:2px;font-size:12px}.word{font-weight:700;text-transform:uppercase;font-size:12.5px}.key{display:inline-block;width:11px;height:11px;border-radius:3px;margin:0 5px 0 14px}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(380px,1fr));gap:14px}.grid section{margin:0}details summary{cursor:pointer;color:var(--soft)}
code{font:13px ui-monospace,Menlo,Consolas,monospace;overflow-wrap:anywhere}
"""

TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>Dataset health: {{ status }}</title><style>{{ css | safe }}</style></head><body><main>
{%- macro bar(parts, whole) -%}
<svg viewBox="0 0 100 14" preserveAspectRatio="none" role="img" aria-label="{% for label, n, _ in parts %}{{ label }} {{ n }}{{ ', ' if not loop.last }}{% endfor %}">
{%- set at = namespace(x=0.0) -%}<rect width="100" height="14" fill="#8884" />
{%- for label, n, colour in parts %}{% set w = 100 * n / whole if whole else 0 %}{% if n -%}
<rect x="{{ '%.3f' % at.x }}" width="{{ '%.3f' % w }}" height="14" fill="{{ colour }}"><title>{{ label }}: {{ '{:,}'.format(n) }}</title></rect>
{%- endif %}{% set at.x = at.x + w %}{% endfor -%}</svg>
{%- endmacro -%}
{%- macro counts(title, note, rows) -%}
<section><h2>{{ title }}</h2><p class="note">{{ note }}</p>
{%- if rows %}<table>{% set top = rows | map(attribute=1) | max %}
{%- for name, n in rows %}<tr><td>{{ name }}</td><td class="n">{{ '{:,}'.format(n) }}</td><td class="bar">{{ bar([(name, n, '#3f7fe0')], top) }}</td></tr>{% endfor -%}
</table>{% else %}<p>none</p>{% endif %}</section>
{%- endmacro %}
<div class="head"><h1>Dataset health</h1><span class="badge {{ status }}">{{ status | upper }}</span></div>
<div class="path">{{ manifest }}</div>
<section><h2>Gates</h2><p class="note">{{ n_passed }} of {{ rules | length }} rules hold. Failures first; what a limit means stands in the last column.</p>
{%- if rules %}<table><tr><th></th><th>rule</th><th class="n">value</th><th class="n">limit</th><th>meaning</th></tr>
{%- for r in rules %}<tr><td class="word {{ r.word }}">{{ r.word }}</td><td>{{ r.name }}</td><td class="n">{{ r.value }}</td><td class="n">{{ r.limit }}</td><td class="path">{{ r.detail }}</td></tr>{% endfor -%}
</table>{% else %}<p class="word fail">fail: no rule, nothing to judge</p>{% endif %}</section>
<div class="cards">{% for name, value in cards %}<div><b>{{ value }}</b><span>{{ name }}</span></div>{% endfor %}</div>
<section><h2>Class balance</h2><p class="note">Hits per drum. <span class="key" style="background:var(--real)"></span>played or recorded <span class="key" style="background:var(--made)"></span>rendered.
 A drum that fails its count needs more takes, not more copies.</p>
{%- if classes %}<table><tr><th>drum</th><th></th><th class="n">hits</th><th class="n">sessions</th><th class="n">groups</th><th class="bar"></th></tr>
{%- for c in classes %}<tr><td>{{ c.name }}</td><td class="word {{ c.word }}">{{ c.word }}</td><td class="n">{{ '{:,}'.format(c.total) }}</td><td class="n">{{ '{:,}'.format(c.sessions) }}</td><td class="n">{{ '{:,}'.format(c.groups) }}</td><td class="bar">{{ bar([('real', c.real, 'var(--real)'), ('rendered', c.synthetic, 'var(--made)')], c.top) }}</td></tr>{% endfor -%}
</table>{% else %}<p>no hits</p>{% endif %}</section>
<section><h2>Dynamics</h2><p class="note">How hard each drum is struck, ghost notes to accents.
{%- for name, colour in colours.items() %}<span class="key" style="background:{{ colour }}"></span>{{ name }}{% endfor %}</p>
{%- if dynamics %}<table>{% for name, parts, whole in dynamics %}<tr><td>{{ name }}</td><td class="n">{{ '{:,}'.format(whole) }}</td><td class="bar" style="width:70%">{{ bar(parts, whole) }}</td></tr>{% endfor %}</table>{% else %}<p>no hits</p>{% endif %}</section>
<div class="grid">
<section class="tall"><h2>Hi-hat openness</h2><p class="note">0 closed, 1 fully open; {{ '{:,}'.format(openness_missing) }} hat hits state none.</p>
<svg viewBox="0 0 200 110" preserveAspectRatio="none" role="img" aria-label="openness histogram">
{%- for n in openness %}<rect x="{{ loop.index0 * 20 + 1 }}" y="{{ '%.2f' % (110 - 108 * n / openness_top) }}" width="18" height="{{ '%.2f' % (108 * n / openness_top) }}" fill="#3f7fe0"><title>{{ '%.1f' % (loop.index0 / 10) }}-{{ '%.1f' % (loop.index / 10) }}: {{ '{:,}'.format(n) }}</title></rect>{% endfor -%}
</svg><table><tr>{% for n in openness %}<td class="note">{{ '%.1f' % (loop.index0 / 10) }}</td>{% endfor %}</tr><tr>{% for n in openness_counts %}<td class="note">{{ n }}</td>{% endfor %}</tr></table></section>
<section><h2>Measured values</h2><p class="note">Quantiles; velocity and openness 0..1.</p><table><tr><th></th><th class="n">n</th><th class="n">5 %</th><th class="n">25 %</th><th class="n">50 %</th><th class="n">75 %</th><th class="n">95 %</th><th class="n">mean</th></tr>
{%- for name, s in stats %}<tr><td>{{ name }}</td>{% for v in s %}<td class="n">{{ v }}</td>{% endfor %}</tr>{% endfor %}</table></section>
{{ counts("Techniques", "Events that carry each gesture.", techniques) }}
{{ counts("Sources", "Events by dataset.", sources) }}
{{ counts("What the audio contains", "Events by mix.", mixes) }}
{{ counts("Bleed", "Events by stated bleed level.", bleed) }}
{{ counts("Issues met while reading", "Sums over the provenance; files were accepted.", issues) }}
{{ counts("Contradictions", "Labels against openness, and members of one event that exclude each other. Reported, not judged.", conflicts) }}
{{ counts("Unknown labels", "Labels outside the taxonomy, after aliases.", unknown) }}
{%- for title, rows in durations %}
{{ counts(title, "Seconds.", rows) }}
{%- endfor %}
</div>
{%- if honesty %}<section><h2>What a score is worth</h2><p class="note">The same simple classifier ({{ honesty.task }}) on the same {{ '{:,}'.format(honesty.rows) }} rows of {{ honesty.takes }} takes and {{ honesty.drummers }} drummers, scored under three splits.
 A split by row lets it remember takes; only takes, or drummers, that it has not heard say what a user will get. Naming the most frequent of {{ honesty.styles }} styles scores {{ '%.1f' % (100 * honesty.chance) }} %.</p>
<table><tr><th>held out</th><th class="n">accuracy</th><th class="bar"></th></tr>
{%- for unit, share in honesty.shares %}<tr><td>{{ unit }}s</td><td class="n">{{ '%.1f' % (100 * share) }} %</td><td class="bar">{{ bar([(unit, share, '#3f7fe0')], 1) }}</td></tr>{% endfor %}</table></section>{% endif %}
{%- if splits %}<section><h2>Splits</h2><p class="note">Hits per drum and split. Groups never cross a split.</p><table><tr><th></th>{% for s in splits %}<th class="n">{{ s.name }}</th>{% endfor %}</tr>
{%- for row in split_rows %}<tr><td>{{ row[0] }}</td>{% for v in row[1] %}<td class="n{{ ' fail' if v == 0 }}">{{ '{:,}'.format(v) }}</td>{% endfor %}</tr>{% endfor %}</table></section>{% endif %}
{%- if examples %}<section><h2>Duplicates and refused rows</h2>{% for title, lines in examples %}<details open><summary>{{ title }} ({{ lines | length }} shown)</summary>{% for line in lines %}<div><code>{{ line }}</code></div>{% endfor %}</details>{% endfor %}</section>{% endif %}
<p class="note">taxonomy {{ taxonomy }} · manifest sha256 {{ digest }}</p>
</main></body></html>
"""


def render(report: Mapping[str, Any], verdict: Verdict) -> str:
    """The page of a report. Text from the data appears as text, never as markup."""
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    return environment.from_string(TEMPLATE).render(_shown(report, verdict)) + "\n"


def _honesty(found: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return {**found, "shares": list(found["accuracy"].items())} if found else None


def _shown(report: Mapping[str, Any], verdict: Verdict) -> dict[str, Any]:
    summary, counts = report["summary"], report["per_class_counts"]
    ordered = sorted(verdict.rules, key=lambda r: r.passed)
    splits = [{"name": name, **row} for name, row in report["splits"].items()]
    return {
        "css": CSS,
        "colours": BUCKET_COLOURS,
        "honesty": _honesty(report.get("split_honesty")),
        "status": verdict.status,
        "manifest": report.get("manifest", {}).get("path", ""),
        "digest": report.get("manifest", {}).get("sha256", ""),
        "taxonomy": report.get("taxonomy", {}).get("version", ""),
        "rules": [_rule(r) for r in ordered],
        "n_passed": sum(r.passed for r in verdict.rules),
        "cards": _cards(summary),
        "classes": _classes(counts, verdict.rules),
        "dynamics": [
            (name, [(b, n, BUCKET_COLOURS.get(b, "#c4c7ce")) for b, n in buckets.items()], sum(buckets.values()))
            for name, buckets in [("all", report["dynamic_bucket_counts"]), *report["per_class_dynamic"].items()]
            if sum(buckets.values())
        ],
        "openness": report["openness_histogram"],
        "openness_counts": [_compact(n) for n in report["openness_histogram"]],
        "openness_top": max(1, *report["openness_histogram"]),
        "openness_missing": report["openness_missing"],
        "stats": [
            (name, [f"{s['n']:,}", *(_number(s[k]) for k in ("p05", "p25", "p50", "p75", "p95", "mean"))])
            for name, s in (
                ("velocity", report["velocity_stats"]),
                ("openness", report["openness_stats"]),
                ("loudness, LUFS", report["loudness"]["LUFS_i"]),
                ("peak, dBFS", report["loudness"]["peak_dbfs"]),
            )
            if s["n"]
        ],
        "techniques": _by_size({k: v["events"] for k, v in report["technique_counts"].items()}),
        "sources": _by_size(report["source_counts"]),
        "mixes": _by_size(report["mix_context_distribution"]),
        "bleed": _by_size(report["bleed_level_distribution"]),
        "issues": _by_size(report["issues"]),
        "conflicts": _by_size({**report["openness_conflicts"], **report["exclusive_group_conflicts"]}),
        "unknown": _by_size(report["unknown_labels"]),
        "durations": [
            (title, _by_size(report[key]))
            for key, title in (
                ("split_durations_seconds", "Duration by split"),
                ("run_split_durations_seconds", "Duration by split, this run"),
                ("duration_seconds_by_source", "Duration by source"),
                ("run_duration_seconds_by_source", "Duration by source, this run"),
            )
            if key in report
        ],
        "splits": splits,
        "split_rows": _split_rows(splits, list(counts)),
        "examples": _examples(report),
    }


def _rule(rule: Rule) -> dict[str, str]:
    word = "waived" if rule.waived else "pass" if rule.passed else "fail"
    return {"word": word, "name": rule.name, "value": _figure(rule.value), "limit": _figure(rule.limit), "detail": rule.detail}


def _figure(value: float | str | None) -> str:
    """Counts in full, other figures with four digits."""
    return f"{value:,.0f}" if isinstance(value, (int, float)) and float(value).is_integer() else shown(value)


def _compact(n: int) -> str:
    """Counts that must fit into a tenth of a card: 67.8k."""
    return str(n) if n < 1000 else f"{n / 1000:.3g}k" if n < 1_000_000 else f"{n / 1e6:.3g}M"


def _cards(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    cards = [
        ("events", f"{summary['events_total']:,}"),
        ("hits", f"{summary['hits_total']:,}"),
        ("sessions", f"{summary['unique_sessions']:,}"),
        ("groups", f"{summary['unique_groups']:,}"),
        ("drummers", f"{summary['unique_drummers']:,}"),
        ("kits", f"{summary['unique_kits']:,}"),
        ("rendered events", f"{summary['events_synthetic']:,}"),
        ("negative windows", f"{summary['negative_examples']['positive']:,}"),
        ("duplicates", _share(summary["duplication_rate"])),
        ("equal content", _share(summary["content_duplication_rate"])),
        ("refused rows", f"{summary['rejected_rows']:,}"),
    ]
    hours = summary["duration_hours_total"]
    return cards + ([] if hours is None else [("hours", f"{hours:,.2f}")])


def _share(value: float | None) -> str:
    return "none" if value is None else f"{100 * value:.2f} %"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def _by_size(counts: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _classes(counts: Mapping[str, Mapping[str, int]], rules: Sequence[Rule]) -> list[dict[str, Any]]:
    """Components in taxonomy order; classes of a coarser view, and classes that nobody plays, stand at the end with the hits that were judged."""
    judged: dict[str, bool] = {}
    values: dict[str, int] = {}
    for rule in rules:
        family, _, label = rule.name.rstrip("]").partition("[")
        if family in ("min_class_count", "min_counts", "require_label"):
            judged[label] = judged.get(label, True) and rule.passed
            values[label] = int(rule.value or 0)
    top = max((c["total"] for c in counts.values()), default=1)
    absent = dict.fromkeys(("real", "synthetic", "sessions", "groups"), 0)
    rows = {**counts, **{label: {**absent, "total": values[label]} for label in judged if label not in counts}}
    words = {True: "pass", False: "fail"}
    return [{"name": name, "word": words[judged[name]] if name in judged else "", "top": top, **c} for name, c in rows.items()]


def _split_rows(splits: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> list[tuple[str, list[int]]]:
    rows = [(field, [s[field] for s in splits]) for field in ("events", "sessions", "groups")]
    return rows + [(label, [s["classes"].get(label, 0) for s in splits]) for label in labels]


def _examples(report: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    duplicates = report["duplicates"]
    lines = [
        ("Repeated event ids", [f"{d['event_id']} in {d['rows']} rows" for d in duplicates["event_ids"]]),
        (
            "Equal content",
            [f"{d['session_id']} at {d['onset_time']:.6f} s: {d['labels']} in {d['rows']} rows" for d in duplicates["content_keys"]],
        ),
        ("Equal audio under two paths", [f"{d['sha256'][:12]}  {'  '.join(d['paths'])}" for d in duplicates["audio_files"]]),
        ("Refused rows", list(report["rejected_row_examples"])),
    ]
    return [(title, rows) for title, rows in lines if rows]
