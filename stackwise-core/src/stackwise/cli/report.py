"""`stackwise report`: the page of one run or several."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(
    epilog="""\b
Examples:
  stackwise report runs/grow-bytes-001
  stackwise report runs/seed-1 runs/seed-2 runs/other -o comparison.html
  stackwise report runs/grow-bytes-001 --svg timeline.svg
  stackwise report --live runs/grow-bytes-001

Exit codes: 0 done, 2 a RUN is not a run directory, or the page cannot be
written.
"""
)
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="The page.  [default: RUN/report.html, or report.html]"
)
@click.option("--svg", type=click.Path(path_type=Path, dir_okay=False), help="Write the timeline of the one RUN as a picture, and no page.")
@click.option("--live", is_flag=True, help="Serve the page on this machine and keep it up to date while the runs train; Ctrl-C ends it.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Port of --live.  [default: a free one]")
def report(runs: tuple[Path, ...], output: Path | None, svg: Path | None, live: bool, port: int) -> None:
    """Write one HTML page that shows one RUN or several: timeline, curves, boundaries, evaluations, and what the runs differ in.

    The page is one file that loads nothing from the network. A run may still be training; it is only read. With --live no file is
    written: the page is served on the loopback address, under an address that holds a random token.
    """
    if svg is not None:
        _draw(runs, svg, alone=output is None and not live)
        return
    if live:
        _serve(runs, output, port)
        return
    from stackwise.reports.page.render import render_page
    from stackwise.reports.record import read_runs, understood

    place = output if output is not None else runs[0] / "report.html" if len(runs) == 1 else Path("report.html")
    with understood(runs):
        page = render_page(read_runs(runs))
    write_page(place, page)
    click.echo(f"{place} ({len(page.encode()) / 1e6:.2f} MB)")


def _draw(runs: tuple[Path, ...], place: Path, *, alone: bool) -> None:
    from stackwise.errors import UserError
    from stackwise.reports.record import read_run, understood
    from stackwise.reports.timeline_svg import timeline_svg

    if len(runs) != 1 or not alone:
        raise UserError("--svg draws the timeline of one RUN and no page: give one RUN, and leave -o and --live out")
    record = read_run(runs[0])
    with understood(runs):
        picture = timeline_svg(record.plan, record.name)
    write_page(place, picture)
    click.echo(place)


def _serve(runs: tuple[Path, ...], output: Path | None, port: int) -> None:
    from contextlib import suppress

    from stackwise.errors import UserError
    from stackwise.reports.page.live import LivePage

    if output is not None:
        raise UserError("--live writes no file: leave -o out")
    with LivePage(runs, port) as page, suppress(KeyboardInterrupt):
        click.echo(f"{page.address}  (Ctrl-C ends it)")
        page.serve()


def write_page(place: Path, page: str) -> None:
    """Write a page, in the place of an older one.

    Raises:
        DiskError: the disk refuses.
    """
    from stackwise.errors import disk_errors

    with disk_errors(place, "give another place by -o, or free space"):
        place.write_text(page, encoding="utf-8")
