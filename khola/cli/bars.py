"""Draws how far a transfer is, on a terminal only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

from khola.cli.talk import Talk

if TYPE_CHECKING:
    from rich.progress import Progress as Drawing

    from khola.fetch.progress import Progress

STAGES = {"fetch": "fetching", "check": "checking", "join": "joining", "copy": "copying", "quantise": "quantising", "merge": "merging"}


@final
class Bar:
    """One line for the file at work. It comes with the first figures and gives way to every sentence; only a terminal sees it."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk
        self._seen = talk.err.isatty() and not talk.quiet and not talk.json
        self._drawing: Drawing | None = None

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def draw(self, progress: Progress) -> None:
        """Show how far a file is."""
        if not self._seen:
            return
        if self._drawing is None:
            self._drawing = self._started()
        title = f"{self._talk.words(STAGES[progress.stage])} {progress.file}"
        done, total = progress.done, progress.total or None
        self._drawing.update(self._drawing.task_ids[0], description=title, completed=done, total=total, figures=figures(progress))

    def say(self, text: str, **facts: Any) -> None:
        """Say a sentence; the line comes again with the next figures."""
        self._stop()
        self._talk.say(text, **facts)

    def _started(self) -> Drawing:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Drawing
        from rich.table import Column

        console = Console(file=self._talk.err, no_color=not self._talk.settings.colour)
        name = TextColumn("{task.description}", markup=False, table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"))
        told = TextColumn("{task.fields[figures]}", markup=False, table_column=Column(no_wrap=True))
        drawing = Drawing(name, BarColumn(bar_width=16), told, console=console, transient=True, expand=True)
        drawing.add_task("", total=None, figures="")
        drawing.start()
        return drawing

    def _stop(self) -> None:
        if self._drawing is not None:
            self._drawing.stop()
            self._drawing = None


def figures(progress: Progress) -> str:
    """Percent, bytes, speed and time left in one line: "71 %  328.1 MB of 462.0 MB  9.8 MB/s  0:00:14"."""
    from khola.cli.tables import size

    parts = [size(progress.done)]
    if progress.total:
        parts = [f"{100 * progress.done // progress.total} %", f"{size(progress.done)} / {size(progress.total)}"]
    if progress.speed:
        parts.append(f"{size(int(progress.speed))}/s")
    if progress.left_s is not None and progress.left_s < 100 * 3600:
        minutes, seconds = divmod(int(progress.left_s), 60)
        parts.append(f"{minutes // 60}:{minutes % 60:02}:{seconds:02}")
    return "  ".join(parts)
