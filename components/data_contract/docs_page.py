"""The one page that all Data Docs stand in: light and dark, narrow and wide, without script, font or address."""

from html import escape
from string import Template


def page(title: str, body: str) -> str:
    """A whole page; `body` is HTML."""
    return PAGE.substitute(title=escape(title), style=STYLE, body=body)


SECTIONS = """<h1>TITLE: Great Expectations</h1>
<p><a href="index.html">Verdict, rows and repairs</a></p>
<nav>{% for section in sections %}<a href="#section-{{ loop.index }}">{{ section["section_name"] }}</a> {% endfor %}</nav>
{% for section in sections %}{% set section_loop = loop %}{% include "section.j2" %}{% endfor %}"""
"""A template of jinja, which Great Expectations fills."""

STYLE = """\
:root { color-scheme: light dark; --ink: #1d2433; --faint: #5c667a; --paper: #fff; --band: #f1f3f7; --line: #d5dae3;
  --good: #17733a; --bad: #b3261e; --warn: #8a5a00; --link: #1b5fc1 }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8f0; --faint: #9aa5b8; --paper: #14181f; --band: #1f2530;
  --line: #38404f; --good: #5ecb86; --bad: #ff8a80; --warn: #e6b450; --link: #8ab4f8 } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 70rem; margin: 2rem auto;
  padding: 0 1rem }
a { color: var(--link) } small { color: var(--faint) } code { font-size: .9em; overflow-wrap: anywhere }
h1 { font-size: 1.5rem } h2 { font-size: 1.2rem; margin: 2rem 0 .3rem } h3 { font-size: 1rem; margin: 1.2rem 0 .3rem }
h5 { font-size: 1.1rem } h6, .h6 { font-size: 1rem; font-weight: 600 } h5, h6, p { margin: .3rem 0 }
table { border-collapse: collapse; width: 100%; margin: .5rem 0 } [hidden] { display: none }
th, td { text-align: left; vertical-align: top; padding: .4rem .6rem; border-bottom: 1px solid var(--line) }
p, li, .checks td, td:nth-child(3), .table td:nth-child(2) { overflow-wrap: anywhere }
.table-sm th { overflow-wrap: normal } .table-sm td { overflow-wrap: anywhere }
.table-sm td:first-child { min-width: 6rem } ul { padding-left: 1.2rem }
.word { white-space: nowrap }
th { color: var(--faint); font-weight: 600 } .number { text-align: right; font-variant-numeric: tabular-nums;
  white-space: nowrap } nav a { display: inline-block; margin-right: .8rem }
.verdict { background: var(--band); padding: .6rem .8rem; border-left: 4px solid currentColor; border-radius: .2rem }
.tiles { display: flex; flex-wrap: wrap; gap: .5rem } .tiles div { background: var(--band); border-radius: .3rem;
  padding: .4rem .8rem; color: var(--faint) } .tiles strong { display: block; color: var(--ink); font-size: 1.2rem }
.table > thead th:first-child { width: 4rem } .table > thead th:last-child { width: 11rem }
.checks th:first-child { width: 5rem } .checks th:nth-child(2) { width: 38% }
.table-sm { width: auto } .table-sm th, .table-sm td { padding: .2rem .6rem }
.alert { background: var(--band); padding: .5rem .8rem; border-radius: .3rem; margin-top: 1.5rem }
.good, .text-success { color: var(--good) } .bad, .text-danger { color: var(--bad) } .warn, .text-warning { color: var(--warn) }
.note { color: var(--faint) } td.good, td.bad, td.warn, td.note { font-weight: 600 } .fas { font-style: normal; font-weight: 700 }
.fa-check-circle::before { content: "\\2713" } .fa-times::before { content: "\\2717" }
@media (max-width: 40rem) { body { margin: 1rem auto } th, td { padding: .3rem .4rem }
  .checks thead, .table:not(.table-sm) > thead { display: none }
  .checks tr, .checks td, .table:not(.table-sm) > tbody > tr, .table:not(.table-sm) > tbody > tr > td { display: block }
  .checks td, .table:not(.table-sm) > tbody > tr > td { border: 0; padding: .1rem 0 }
  .checks tr, .table:not(.table-sm) > tbody > tr { border-bottom: 1px solid var(--line); padding: .5rem 0 } }
"""

PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>$title</title>
<style>$style</style>
</head>
<body>
$body
</body>
</html>
""")
