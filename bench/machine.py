"""What the benchmarks share: what the machine is, tables, and sections of ``docs/benchmarks.md``."""

from __future__ import annotations

import datetime as dt
import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from featcache import atomic
from featcache.hardware import device_in_words

BENCHMARKS = Path(__file__).parents[1] / "docs" / "benchmarks.md"

HEADING = """# Benchmarks

Each section is written by one of the `make bench-…` commands, on the machine and day that stand in it; run it again to
replace it. Ratios are of rates measured in turn within one run.
"""

PACKAGES = ("numpy", "h5py", "torch", "torchvision", "timm", "openvino", "pillow", "simplejpeg")


def on_device(section: str, title: str, device: str) -> tuple[str, str]:
    """Name and title of a section: a GPU's stand beside the processor's."""
    return (section, title) if device == "cpu" else (f"{section}-cuda", f"{title}, on a GPU")


def describe(device: str = "cpu") -> list[str]:
    """The machine, what is installed, and the day, as lines for a section."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    load = ", ".join(f"{average:.1f}" for average in os.getloadavg())
    system = f"{platform.system()}, {platform.machine()}"
    packages = [f"{name} {found}" for name in ("cxr", *PACKAGES) if (found := _version(name))]
    where = "" if device == "cpu" else f"{device_in_words(device)}; "
    where += f"{_processor()}, {os.cpu_count()} cores, {memory:.0f} GiB"
    day = dt.datetime.now(dt.UTC).date().isoformat()
    return [
        f"{day}; {where}; {system}; load of 1, 5, 15 minutes {load}.",
        f"Python {platform.python_version()}, {', '.join(packages)}.",
    ]


def show(header: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> list[str]:
    """Print a table, its first column as words and the others as numbers, and return it as lines of Markdown."""
    table = Table(title=escape(title) or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for number, name in enumerate(header):
        table.add_column(escape(name), justify="right" if number else "left")
    for row in rows:
        table.add_row(*map(escape, row))
    Console(highlight=False, emoji=False).print(table)
    rule = ["---", *["---:"] * (len(header) - 1)]
    return [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in (header, rule, *rows)]


def write_section(name: str, title: str, lines: Sequence[str], page: Path | None = None) -> None:
    """Replace one section of a page, or add it at the end; the others stay as they are.

    Args:
        name: the section stands between ``<!-- name -->`` and ``<!-- /name -->``.
        title: its heading.
        lines: its text, in Markdown.
        page: where it stands; ``docs/benchmarks.md`` when None.

    Raises:
        ValueError: the section that is there has no end.
        WriteError: the file cannot be written.
    """
    page = page or BENCHMARKS
    text = page.read_text(encoding="utf-8") if page.exists() else HEADING
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    section = "\n".join([start, f"## {title}", "", *lines, end])
    before, there, rest = text.partition(start)
    if there:
        _, ended, after = rest.partition(end)
        if not ended:
            raise ValueError(f"{page.name} has {start} and no {end} after it")
        atomic.write_text(page, before + section + after)
    else:
        atomic.write_text(page, f"{text.rstrip()}\n\n{section}\n")


def _processor() -> str:
    """The processor's name and the widest vector instructions that it tells of."""
    facts = Path("/proc/cpuinfo")
    if not facts.exists():
        return platform.processor() or platform.machine()
    pairs = (line.partition(":") for line in facts.read_text(encoding="utf-8").splitlines())
    known = {key.strip(): value.strip() for key, _, value in pairs}
    flags = set(known.get("flags", "").split())
    wide = [name for name, flag in (("AVX2", "avx2"), ("AVX-512", "avx512f"), ("AMX", "amx_tile")) if flag in flags]
    return f"{known.get('model name', platform.machine())} ({', '.join(wide) or 'no AVX2'})"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
