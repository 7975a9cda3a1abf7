"""Style sheet of the HTML reports: light and dark, phone to wide screen, no external resource."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark; --ink: #1c2330; --soft: #5f6b7e; --line: #d9dee7;
  --paper: #fbfbfd; --card: #fff; --main: #2f6fde; --drop: #d9822b; --shade: #eef1f6;
  --good: #d5efdc; --good-2: #bfe4ca; --good-line: #3c9a5b; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --soft: #9aa4b6; --line: #333b49;
  --paper: #14181f; --card: #1b212b; --main: #6c9cf0; --drop: #e0a05c; --shade: #262e3a;
  --good: #1c3a29; --good-2: #265039; --good-line: #5cb67b; } }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 84rem; margin: 2rem auto; padding: 0 1.2rem; font-variant-numeric: tabular-nums; }
body > :not(.wide) { max-width: 62rem; margin-left: auto; margin-right: auto; }
h1 { font-size: 1.6rem; margin-block: 0; line-height: 1.2; }
h2 { font-size: 1.15rem; margin-block: 2.4rem .5rem; }
p { margin-block: .4rem .8rem; }
code, pre { font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
code { font-size: .86em; overflow-wrap: anywhere; unicode-bidi: isolate; }
a { color: var(--main); }
.soft { color: var(--soft); }
.tiles { display: flex; flex-wrap: wrap; gap: .7rem; margin-block: 1.2rem; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: .6rem;
  padding: .6rem .9rem; flex: 1 1 6.3rem; color: var(--soft); font-size: .9rem; }
.tile b { display: block; font-size: 1.35rem; line-height: 1.3; color: var(--ink); }
table { border-collapse: collapse; width: 100%; table-layout: fixed; }
td, th { text-align: left; padding: .28rem .6rem; border-bottom: 1px solid var(--line);
  vertical-align: top; overflow-wrap: anywhere; }
th { font-weight: 500; color: var(--soft); font-size: .9rem; }
td:first-child, th:first-child { width: 14rem; }
td.n, th.n { text-align: right; width: 6rem; } td.n { white-space: nowrap; }
td.bar { vertical-align: middle; }
.bar i { display: block; height: .95rem; border-radius: .15rem; background: var(--main);
  min-width: 2px; }
.bar i.drop { background: var(--drop); }
tr.sum td { font-weight: 600; } tr.drop td:first-child { padding-left: 1.4rem; }
.chart { margin: .6rem 0 0; font-size: .8rem; color: var(--soft); }
.plot { position: relative; display: flex; align-items: flex-end; gap: 1px; height: 9.5rem;
  border-bottom: 1px solid var(--line); }
.plot i { flex: 1 1 0; background: var(--main); border-radius: .12rem .12rem 0 0; }
.plot i.over { background: var(--drop); opacity: .75; }
.plot i[style="height:0%"] { visibility: hidden; }
.plot u { position: absolute; top: 0; bottom: 0; border-left: 1.5px dashed var(--ink); }
.plot span { position: absolute; top: 0; padding: 0 .35rem; white-space: nowrap;
  background: var(--paper); color: var(--ink); }
.axis { position: relative; height: 1.5rem; margin-top: .2rem; }
.axis span { position: absolute; transform: translateX(-50%); white-space: nowrap; }
.reason { display: grid; grid-template-columns: 17rem minmax(0, 1fr); gap: .1rem 1.4rem;
  padding: .6rem 0; border-bottom: 1px solid var(--line); }
.reason p, .reason ul { margin: 0; padding: 0; list-style: none; }
.reason li { overflow-wrap: anywhere; }
details { background: var(--card); border: 1px solid var(--line); border-radius: .6rem;
  margin-block: .4rem; padding: .45rem .9rem; }
summary { cursor: pointer; overflow-wrap: anywhere; }
summary bdi { display: block; color: var(--soft); overflow: hidden; white-space: nowrap;
  text-overflow: ellipsis; }
details[open] { border-color: var(--main); } details[open] > summary bdi { display: none; }
.turn { border-top: 1px solid var(--line); margin-top: .8rem; padding-top: .5rem; }
.turn h3 { font-size: .95rem; margin: 0 0 .3rem; }
.panes { display: grid; grid-auto-flow: column; grid-auto-columns: minmax(0, 1fr); gap: .7rem; }
.panes h4 { font-size: .78rem; font-weight: 500; color: var(--soft); margin: 0 0 .2rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .8rem; line-height: 1.5;
  margin: 0; padding: .5rem .6rem; max-height: 26rem; overflow: auto; background: var(--paper);
  border: 1px solid var(--line); border-radius: .4rem; }
pre i, .key i { font-style: normal; border-radius: .15rem; }
pre i:nth-child(even), .key i:nth-child(even) { background: var(--shade); }
mark { background: none; color: inherit; }
mark i { background: var(--good); box-shadow: inset 0 -1px var(--good-line); }
pre mark i:nth-child(even), .key mark i:nth-child(even) { background: var(--good-2); }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .15rem 1.2rem;
  margin: .6rem 0 .3rem; } dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 56rem) { .panes { grid-auto-flow: row; } pre { max-height: 18rem; } }
@media (max-width: 40rem) { body { margin: 1rem auto; padding: 0 .8rem; }
  .tile { flex-basis: 5.6rem; padding: .45rem .7rem; } .tile b { font-size: 1.15rem; }
  td, th { padding-inline: .3rem; } td:first-child, th:first-child { width: 40%; }
  td.n, th.n { width: 4.1rem; } th { font-size: .8rem; }
  tr.drop td:first-child { padding-left: .7rem; }
  .reason { grid-template-columns: minmax(0, 1fr); } dl { grid-template-columns: 1fr; }
  dd { margin-bottom: .3rem; } }
@media print { pre { max-height: none; } }
"""
