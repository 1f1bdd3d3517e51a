"""The style sheet of the report, with colours for light and dark mode.

The roles of `lm.calibration.report.diagrams.COLOURS` are custom properties here, so that figures follow the mode too.
"""

from lm.calibration.report.diagrams import COLOURS

_LIGHT = {
    "page": "#ffffff",
    "raised": "#f5f6f8",
    "line": "#d9dde2",
    "good": "#00694d",
    "bad": "#a84300",
    "link": "#005a8f",
}
_DARK = {
    **{
        "page": "#14171b",
        "raised": "#1d2127",
        "line": "#363d46",
        "good": "#4fd1a5",
        "bad": "#ffa366",
        "link": "#7cc4f5",
    },
    **{"ink": "#e8eaed", "muted": "#a0a9b3", "band": "#3c444e", "before": "#ff8b45", "after": "#4fa9ee"},
    **{"green": "#2cc496", "pink": "#e39cc3", "orange": "#f2b632", "sky": "#b9e4ff"},
}
_CSS = """
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
 font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:80rem;margin:0 auto;padding:1rem clamp(1rem,3vw,2.5rem) 4rem;overflow-wrap:anywhere}
h1{font-size:1.6rem;line-height:1.25;margin:1rem 0 .25rem}
h2{font-size:1.2rem;margin:2.75rem 0 .75rem}
h3{font-size:1rem;margin:1.75rem 0 .5rem}
a{color:var(--link);text-underline-offset:.15em}
.quiet,figcaption{color:var(--muted);font-size:.875rem;margin:.5rem 0;max-width:44rem}
.answer{font-size:1.1rem;max-width:52rem;margin:1.25rem 0}
.answer p{margin:.75rem 0;padding-left:1rem;border-left:4px solid var(--before)}
.answer p+p{border-color:var(--after)}
.answer p b{display:block;font-size:.875rem}
.answer ul{font-size:.95rem;padding-left:1.2rem;margin:1rem 0}
.warnings{border-left:4px solid var(--bad);padding-left:1rem;margin-top:2rem}
.warnings h2{margin:0}
.warnings ul{margin:.25rem 0;padding-left:1.2rem}
figure{margin:0;min-width:0}
svg{display:block;width:100%;height:auto}
svg *{stroke-linejoin:round;stroke-linecap:butt}
svg text{font-family:system-ui,-apple-system,"Segoe UI",Roboto,sans-serif!important}
.beside{display:grid;gap:1.5rem 2rem;align-items:start}
.beside>*{min-width:0}
.pair{display:grid;gap:1rem 2rem;margin:1rem 0 1.5rem}
.pair figure{max-width:34rem}
.beside.even figure{max-width:26rem}
.single figure{max-width:34rem}
.scroll{overflow-x:auto;width:fit-content;border:1px solid var(--line);border-radius:6px;max-width:100%}
table{border-collapse:collapse;width:100%;font-size:.875rem;font-variant-numeric:tabular-nums;overflow-wrap:normal}
th,td{padding:.45rem .65rem;text-align:right;vertical-align:top;border-bottom:1px solid var(--line);white-space:nowrap}
th{font-weight:600}
th:first-child{text-align:left;position:sticky;left:0;background:var(--page);
 white-space:normal;min-width:6.5rem;max-width:11rem}
th small{white-space:nowrap}
thead th,thead th:first-child{background:var(--raised);vertical-align:bottom}
tbody tr:last-child>*{border-bottom:0}
td span{font-weight:600}
small{display:block;font-size:.78rem;font-weight:400;color:var(--muted)}
small.better{color:var(--good)}
small.worse{color:var(--bad)}
hr{border:0;border-top:1px dotted var(--line);margin:.3rem 0}
details{border-bottom:1px solid var(--line);scroll-margin-top:1rem}
summary{padding:.6rem 0;cursor:pointer;font-weight:600}
summary small{display:inline;margin-left:.6rem}
details>:not(summary){margin-bottom:1rem}
details:target::details-content{content-visibility:visible;block-size:auto}
pre{background:var(--raised);padding:.6rem .8rem;border-radius:6px;white-space:pre-wrap;margin:.5rem 0}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.15rem 1rem;margin:.5rem 0;font-size:.9rem}
dt{color:var(--muted)}
dd{margin:0}
:focus-visible{outline:2px solid var(--link);outline-offset:2px}
@media (min-width:36rem){.pair{grid-template-columns:1fr 1fr}}
@media (max-width:36rem){
th,td{padding:.4rem .5rem}
.stacks{width:auto}
.stacks tr{display:grid;grid-template-columns:repeat(3,1fr)}
.stacks th,.stacks td{white-space:normal;border:0}
.stacks thead th:first-child{display:none}
.stacks tbody th{grid-column:1/-1;max-width:none;border-top:1px solid var(--line);padding-bottom:0}
.stacks tbody th small{display:inline;margin-left:.5rem}}
@media (min-width:64rem){
.stacks{width:100%}
.stacks td{white-space:normal}
.stacks small{display:inline-block;margin-left:.6rem}
.stacks th:first-child{max-width:none}
.beside.even{grid-template-columns:26rem 1fr}}
@media print{
@page{size:A4 landscape;margin:12mm}
body{font-size:10pt}
main{max-width:none;padding:0}
.scroll{overflow:visible;border:0}
table{font-size:8pt}
th,td{padding:.2rem .4rem}
.wide th,.wide td{font-size:6.5pt;padding:.15rem .3rem}
.beside.even{grid-template-columns:1fr max-content}
.pair{grid-template-columns:1fr 1fr}
.pair figure,.single figure,.beside.even figure{max-width:20rem}
tr,figure,.warnings,.answer,.computed details{break-inside:avoid}
h2,h3{break-after:avoid}
.computed details::details-content{content-visibility:visible;block-size:auto}
}
"""


def style_sheet() -> str:
    """The CSS of the page. Print is always light."""
    light, dark = (
        ";".join(f"--{role}:{colour}" for role, colour in more.items()) for more in (COLOURS | _LIGHT, _DARK)
    )
    return (
        f":root{{color-scheme:light;{light}}}"
        f"@media screen and (prefers-color-scheme:dark){{:root{{color-scheme:dark;{dark}}}}}{_CSS}"
    )
