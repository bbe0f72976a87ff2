"""How the report looks: one column of plain text, thin rules, one colour."""

STYLE = """
:root { color-scheme: light dark; --ink: #1c1d1f; --soft: #63666b; --rule: #dcdde0; --paper: #fff;
  --place: #eceef0; --fill: #2f6f8f; --lost: #c2703d; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e3; --soft: #9a9ca1; --rule: #35373b;
  --paper: #17181a; --place: #26282b; --fill: #6fb0cf; --lost: #dd935f; } }
@media print { :root { color-scheme: light; --ink: #000; --soft: #444; --rule: #bbb; --paper: #fff;
  --place: #eee; --fill: #2f6f8f; --lost: #c2703d; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 3rem 1.5rem 5rem; }
header p { margin: .2rem 0; color: var(--soft); overflow-wrap: anywhere; }
.over { font-size: .78rem; letter-spacing: .09em; text-transform: uppercase; }
h1 { margin: 0; font-size: 2rem; line-height: 1.2; font-weight: 600; overflow-wrap: anywhere; }
h2 { margin: 3rem 0 .6rem; font-size: 1.1rem; font-weight: 600; }
p { margin: .4rem 0 .8rem; max-width: 46rem; }
section > p { color: var(--soft); } section > p strong { color: var(--ink); font-weight: 600; }
.totals { display: grid; grid-template-columns: repeat(auto-fit, minmax(10rem, 1fr)); gap: 1.2rem 1.5rem;
  margin: 2rem 0 0; padding: 1.2rem 0; border: solid var(--rule); border-width: 1px 0; }
dt { color: var(--soft); font-size: .85rem; } dd { margin: 0; font-size: 1.6rem; line-height: 1.3;
  font-variant-numeric: tabular-nums; }
small { color: var(--soft); font-size: .82rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: right; font-weight: 500; font-size: .82rem; color: var(--soft); white-space: nowrap; }
th, td { padding: .32rem .7rem; border-bottom: 1px solid var(--rule); vertical-align: top; }
td { text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; white-space: normal;
  overflow-wrap: anywhere; min-width: 11rem; }
tr > :last-child { padding-right: 0; } td:has(.bar) { width: 24%; min-width: 7rem; text-align: left; }
.step td:first-child { font-weight: 600; }
.reason td { border-bottom-color: transparent; color: var(--soft); }
.reason td:first-child { padding-left: 1.2rem; } .reason + .step td { border-top: 1px solid var(--rule); }
.where { display: block; } .where code + code::before { content: ", "; }
code { font: .92em ui-monospace, "SFMono-Regular", Menlo, Consolas, monospace; overflow-wrap: anywhere; }
.bar { display: block; height: .5rem; margin-top: .45rem; background: var(--place); border-radius: 2px; }
.fill { display: block; height: 100%; min-width: 1px; background: var(--fill); border-radius: 2px; }
.fill.lost { background: var(--lost); }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 1.5rem 2rem; }
figure { margin: .6rem 0 0; } figcaption { color: var(--soft); font-size: .85rem; margin-bottom: .3rem; }
svg { display: block; width: 100%; height: auto; } .column { fill: var(--fill); }
.ground { stroke: var(--rule); } svg text { text-anchor: middle; font-size: 15px; fill: var(--soft); }
@media print { * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  body { font-size: 9.5pt; } main { padding: 0; max-width: none; }
  h2 { margin-top: 2rem; break-after: avoid; } small, th, code { font-size: 7.5pt; } dd { font-size: 13pt; }
  .totals { grid-template-columns: repeat(5, 1fr); gap: .8rem; }
  tr, figure, .totals { break-inside: avoid; } .wide { overflow: visible; } table { font-size: 8.5pt; }
  th { white-space: normal; vertical-align: bottom; } th, td { padding: .2rem .4rem; }
  td:has(.bar) { min-width: 3rem; } th:first-child, td:first-child { min-width: 8rem; } }
"""
