"""The page's style: colours as variables, light and dark; one column on a phone."""

STYLE = """
:root{--page:#f6f7f9;--card:#fff;--ink:#1b2330;--dim:#566072;--rule:#dde1e8;--grid:#e6e9ee;--on:#fff;
--t0:#2f6fb4;--t1:#c2620e;--t2:#2b8a57;--t3:#8a4fa8;--t4:#8f7000;--t5:#2b8a57;--t6:#c43b3b;--t7:#b5bbc4}
@media (prefers-color-scheme:dark){:root{--page:#12161c;--card:#1b2129;--ink:#e7ebf1;--dim:#a3adbb;--rule:#313a46;
--grid:#2a323d;--on:#10151b;--t0:#6fb0f2;--t1:#f0a05a;--t2:#66c997;--t3:#c797e0;--t4:#d9bd55;--t5:#66c997;--t6:#ff8a84;
--t7:#5f6a79}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;text-size-adjust:100%}
body{margin:0;background:var(--page);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans","DejaVu Sans",sans-serif}
header,nav,main,footer{max-width:72rem;margin:0 auto;padding:0 1rem}
h1{font-size:1.6rem;line-height:1.2;margin:1.6rem 0 1rem;overflow-wrap:anywhere}
h2{font-size:1.2rem;margin:2.2rem 0 .2rem}
h3{font-size:.95rem;margin:0;overflow-wrap:anywhere;unicode-bidi:isolate}
section>p{margin:.2rem 0 1rem;color:var(--dim);max-width:46rem}
a{color:var(--t0)}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(9.5rem,1fr));gap:.75rem;margin:0}
.facts div,figure,section>.table{background:var(--card);border:1px solid var(--rule);border-radius:.6rem}
.facts div{padding:.7rem .9rem}
dt{color:var(--dim);font-size:.85rem;overflow-wrap:anywhere}
dd{margin:0;font-size:1.3rem;font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
dd.note{font-size:.85rem;color:var(--dim)}
nav ul{display:flex;flex-wrap:wrap;gap:.3rem 1.1rem;list-style:none;padding:0;margin:1rem 0 0}
.figures{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,24rem),1fr));gap:1rem;align-items:start}
.figures.dense{grid-template-columns:repeat(auto-fill,minmax(min(100%,17rem),1fr))}
figure{margin:0;padding:.9rem;min-width:0}
figcaption p{margin:.1rem 0 0;color:var(--dim);font-size:.85rem}
.legend{display:flex;flex-wrap:wrap;gap:.1rem .9rem;list-style:none;padding:0;margin:.3rem 0 0;font-size:.85rem}
.legend li{display:flex;align-items:center;gap:.4rem;overflow-wrap:anywhere}
.swatch{display:inline-block;width:.8rem;height:.8rem;flex:none;background:var(--c)}
.swatch.circle{border-radius:50%}
.swatch.ring{border-radius:50%;background:none;border:2px solid var(--c)}
.swatch.stroke{height:3px;width:1.1rem}
.swatch.dashed{background:repeating-linear-gradient(90deg,var(--c) 0 4px,transparent 4px 7px)}
.swatch.cross{background:none;position:relative}
.swatch.cross::before{content:"×";position:absolute;inset:-.35rem 0 0;color:var(--c);font:bold 1.2rem/1 sans-serif}
.picture{max-height:44rem;overflow-y:auto;margin-top:.5rem}
svg{display:block;width:100%;max-width:30rem;height:auto;overflow:hidden}
text{font-size:11.5px;fill:var(--ink);unicode-bidi:isolate}
text.label{fill:var(--dim)}
text.small{font-size:10.5px}
text.name{paint-order:stroke;stroke:var(--card);stroke-width:3px;stroke-linejoin:round}
text.end{text-anchor:end}
text.middle{text-anchor:middle}
text.on{fill:var(--on)}
.grid{stroke:var(--grid)}
.axis{stroke:var(--dim)}
.line{fill:none;stroke:var(--c);stroke-width:2;stroke-linejoin:round}
.line.dashed{stroke-dasharray:5 4}
.rule line{stroke:var(--c);stroke-width:2;stroke-dasharray:4 3}
.circle circle{fill:var(--c);stroke:var(--card)}
.ring circle{fill:var(--card);stroke:var(--c);stroke-width:2.5}
.cross path{stroke:var(--c);stroke-width:2.5;fill:none}
.spread{stroke:var(--c);stroke-width:1.5}
.columns rect,.bar{fill:var(--c)}
.cell rect{fill:var(--t0)}
.unknown{fill:none;stroke:var(--rule);stroke-dasharray:3 3}
details{margin-top:.5rem;font-size:.85rem}
summary{cursor:pointer;color:var(--dim)}
.table{overflow-x:auto;max-width:100%}
details .table{max-height:24rem;overflow-y:auto}
section>.table{margin-bottom:1rem}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:.35rem .7rem;text-align:left;border-bottom:1px solid var(--rule);vertical-align:top;unicode-bidi:isolate}
thead th{color:var(--dim);font-weight:600;font-size:.85rem}
tbody th{font-weight:600;overflow-wrap:break-word;min-width:6rem;max-width:18rem}
thead th{min-width:4.5rem}
tbody tr:last-child>*{border-bottom:0}
td.number{white-space:nowrap}
td:not(.number){overflow-wrap:anywhere}
:focus-visible{outline:2px solid var(--t0);outline-offset:2px}
footer{color:var(--dim);font-size:.85rem;padding-top:2rem;padding-bottom:2rem}
@media (max-width:25rem){header,nav,main,footer{padding-left:.6rem;padding-right:.6rem}figure{padding:.6rem}}
@media print{details{display:none}.picture{max-height:none}}
""" + "".join(f".t{index}{{--c:var(--t{index})}}" for index in range(8))
