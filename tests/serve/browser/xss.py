"""Texts that run a script, load a picture or lead elsewhere where a page takes text for HTML."""

from __future__ import annotations

from itertools import product

RUN = "window.hacked=1"
TAGS = (
    "<script>{run}</script>", '<img src=x onerror="{run}">', "<svg onload={run}>", "<svg><script>{run}</script></svg>", "<body onload={run}>",
    '<iframe srcdoc="<script>parent.{run}</script>"></iframe>', "<iframe src=javascript:{run}></iframe>", "<details open ontoggle={run}>x</details>",
    "<input autofocus onfocus={run}>", "<video><source onerror={run}></video>", "<marquee onstart={run}>x</marquee>", "<object data=javascript:{run}>",
    '<a href="javascript:{run}">x</a>', '<form action="javascript:{run}"><button>x</button></form>', "<math><a xlink:href=javascript:{run}>x</a></math>",
    '<meta http-equiv="refresh" content="0;url=javascript:{run}">', "<base href=//evil.example>", '<link rel=stylesheet href="//evil.example/x.css">',
    "<style>@import '//evil.example/x.css';</style>", '<div style="background:url(//evil.example/x)">x</div>', "<template><script>{run}</script></template>",
    "<noscript><p title='</noscript><img src=x onerror={run}>'></noscript>", "<img srcset='//evil.example/x 1x'>", "<audio src=x onerror={run}>",
)  # fmt: skip
LINKS = (
    "[x](javascript:{run})", "[x](JaVaScRiPt:{run})", "[x](java\tscript:{run})", "[x](&#106;avascript:{run})", "[x](data:text/html,<script>{run}</script>)",
    "[x](vbscript:{run})", "![x](https://evil.example/leak?q=1)", "![x](javascript:{run})", '[x](https://evil.example/" onmouseover="{run})',
    "<javascript:{run}>", "[<img src=x onerror={run}>](https://example.org)", "[x](//evil.example)", "[x](file:///etc/passwd)", "[x]( javascript:{run} )",
)  # fmt: skip
WRAPS = (
    "{x}", "**{x}**", "`{x}`", "> {x}", "- {x}", "# {x}", "| a |\n| --- |\n| {x} |", "```html\n{x}\n```", "*{x}", '"\'>{x}', "</p></div>{x}", "\\{x}",
)  # fmt: skip


def _all() -> list[str]:
    texts = [text.replace("{run}", RUN) for text in (*TAGS, *LINKS)]
    wrapped = [wrap.replace("{x}", text) for wrap, text in product(WRAPS, texts)]
    odd = [
        "\u202e<script>1</script>",
        "\x00<script>1</script>",
        "{{constructor.constructor('window.hacked=1')()}}",
        "${window.hacked=1}",
        "]]>",
        "<!--",
    ]
    return [*wrapped, *odd]


PAYLOADS = _all()
