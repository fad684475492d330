"""`python -m cutmix_jax.report RUNS... --output DIR`."""

import argparse
import base64
import pathlib
import sys

import jinja2

from cutmix_jax import report
from cutmix_jax.command_line import Parser, guard
from cutmix_jax.paths import user_path, write_text


def figures_of(sections):
    """All figures, including those of parts."""
    for section in sections:
        yield from section.figures
        yield from figures_of(section.parts)


def words(text):
    """Text that Markdown shows literally, on one line and in one cell."""
    return " ".join(text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").split())


def main(arguments):
    """Writes the page."""
    parser = Parser(
        prog="python -m cutmix_jax.report",
        description=report.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", metavar="RUNS", help="workdirs, or folders of them")
    parser.add_argument("--output", default="report", help="folder of the page (report)")
    flags = parser.parse_args(arguments)

    from cutmix_jax.report.runs import read_runs
    from cutmix_jax.report.sections import build, headline

    output = user_path(flags.output, "--output")
    runs = read_runs(flags.runs)
    (output / "figures").mkdir(parents=True, exist_ok=True)
    content = {"sections": build(runs), "headline": headline(runs)}
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=jinja2.select_autoescape(["html"]),
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    environment.filters["words"] = words
    for figure in figures_of(content["sections"]):
        (output / "figures" / figure.name).write_bytes(figure.png)
    for suffix in ("html", "md"):
        page = environment.get_template(f"page.{suffix}").render(content)
        write_text(output / f"index.{suffix}", page)
    print(f"{len(runs)} runs: {output / 'index.html'}, {output / 'index.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(guard(main, sys.argv[1:]))
