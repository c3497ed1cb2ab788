// How the topology looks: kinds of links by colour and pattern, groups by colour and number.

export const GROUP_COLOURS = ["#2F74D0", "#C7719E", "#0A8F6C", "#C98A00", "#8A63D2", "#1797A8", "#A0683A", "#6E7A8A"];

export const TOPOLOGY_CSS = `
.tplab-picture {
  --nv: light-dark(#007E5D, #3CC39B); --pcie: light-dark(#5577A5, #8FB0DB); --sys: light-dark(#A66B00, #E0A73C);
  --net: light-dark(#8A4FB0, #C79AE6); --red: light-dark(#C62A17, #FF6B57); --rest: light-dark(#5577A5, #8FB0DB); --hop: #C7719E;
}
.tplab-picture .heading { font-size: 14px; font-weight: 600; margin-bottom: 4px; }
.tplab-picture .heading .badge { vertical-align: 1px; margin-right: 4px; }
.tplab-picture .quiet, .tplab-picture .help { color: var(--quiet); }
.tplab-picture .help { font-size: 12px; max-width: 900px; }
.tplab-picture .fault { color: var(--red); }
.tplab-picture .numbers { min-height: 82px; max-width: 720px; }
.tplab-picture .numbers b { font-size: 15px; font-variant-numeric: tabular-nums; }
.tplab-picture .timebar { display: flex; align-items: center; height: 16px; font-variant-numeric: tabular-nums; }
.tplab-picture .timebar .name { width: 38px; color: var(--quiet); }
.tplab-picture .timebar .ms { margin-left: 6px; white-space: nowrap; }
.tplab-picture .timebar i { height: 11px; transition: width 0.25s; }
.tplab-picture i.rest { background: var(--rest); } .tplab-picture i.reduce { background: var(--red); }
.tplab-picture i.hop { background: var(--hop); }
.tplab-picture .key { font-size: 12px; } .tplab-picture .key i { display: inline-block; width: 10px; height: 10px; }
.tplab-picture .key i + i { margin-left: 8px; }
.tplab-picture .status { min-height: 2.9em; max-width: 900px; color: var(--ink); }
.tplab-picture .offer { min-height: 0; margin: 0 0 4px; }
.tplab-picture svg.machine { margin: 2px auto 4px; overflow: visible; user-select: none; }
.tplab-picture .small { font-size: 11.5px; fill: var(--quiet); } .tplab-picture .mid { text-anchor: middle; }
.tplab-picture .strong { font-weight: 600; font-size: 12.5px; } .tplab-picture .tag { font-size: 11px; fill: var(--quiet); }
.tplab-picture .box { fill: none; stroke: var(--line); } .tplab-picture .box.node { stroke-dasharray: 5 4; }
.tplab-picture .bar { fill: var(--soft); stroke: var(--line); } .tplab-picture .bar.nvswitch { stroke: var(--nv); stroke-width: 1.5; }
.tplab-picture .bar.network { stroke: var(--net); stroke-width: 1.5; }
.tplab-picture .bars text { fill: var(--ink); }
.tplab-picture .line polyline, .tplab-picture .line line { fill: none; stroke: var(--pcie); stroke-linejoin: round; }
.tplab-picture .line.nv polyline, .tplab-picture .line.nv line { stroke: var(--nv); }
.tplab-picture .line.sys polyline, .tplab-picture .line.sys line { stroke: var(--sys); stroke-dasharray: 7 4; }
.tplab-picture .line.net polyline, .tplab-picture .line.net line { stroke: var(--net); stroke-dasharray: 2 3; }
.tplab-picture .line polyline.hit { stroke: transparent; stroke-width: 16px; stroke-dasharray: none; }
.tplab-picture .line:hover polyline:not(.hit) { stroke: var(--accent); }
.tplab-picture .hull { opacity: 0.3; } .tplab-picture .hull.target { opacity: 0.6; }
.tplab-picture .hull rect { fill: var(--group); } .tplab-picture .hull line { stroke: var(--group); stroke-linecap: round; }
.tplab-picture .hops polyline { fill: none; stroke: var(--hop); stroke-width: 2.5; stroke-dasharray: 1 6; stroke-linecap: round; pointer-events: none; }
.tplab-picture .binding polyline {
  fill: none; stroke: var(--red); stroke-width: 4; stroke-linejoin: round; pointer-events: none;
  animation: tplab-slow 1.1s ease-in-out infinite alternate;
}
@keyframes tplab-slow { from { opacity: 1; } to { opacity: 0.3; } }
.tplab-picture .chip { cursor: grab; }
.tplab-picture .chip .body { fill: var(--paper); stroke: var(--group); stroke-width: 2.5; }
.tplab-picture .chip.idle .body { stroke-dasharray: 4 3; }
.tplab-picture .chip:hover .body, .tplab-picture .chip.target .body { fill: var(--soft); stroke-width: 4; }
.tplab-picture .chip:focus-visible { outline: 2px solid var(--accent); outline-offset: 4px; border-radius: 8px; }
.tplab-picture .chip.dragged { opacity: 0.75; cursor: grabbing; outline: none; }
.tplab-picture .chip.held .body { fill: var(--group); fill-opacity: 0.35; stroke-dasharray: 3 2; }
.tplab-picture .legend { display: flex; flex-wrap: wrap; gap: 2px 16px; font-size: 12px; margin: 4px 0; }
.tplab-picture .legend span { display: inline-flex; align-items: center; gap: 6px; white-space: nowrap; }
.tplab-picture .legend svg { width: 34px; flex: none; }
.tplab-picture .groups { display: grid; grid-template-columns: repeat(auto-fill, minmax(290px, 1fr)); gap: 2px 14px; margin: 6px 0; font-size: 12.5px; }
.tplab-picture .group { display: flex; flex-wrap: wrap; gap: 0 7px; align-items: center; padding: 2px 6px; border-radius: 5px; }
.tplab-picture .group i { width: 11px; height: 11px; border-radius: 3px; background: var(--group); flex: none; }
.tplab-picture .group.target { background: var(--soft); outline: 2px solid var(--group); }
@media (prefers-reduced-motion: reduce) {
  .tplab-picture .binding polyline { animation: none; } .tplab-picture .timebar i { transition: none; }
}
`;
