"""What a browser makes of ``report.html``: ``make browser``; needs Chromium."""

import http.server
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hf_shrink.publishing.page import PAGE
from tests.publishing.test_page import rendered

pytestmark = pytest.mark.browser

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PROBE = """<!DOCTYPE html><link rel="icon" href="data:,">
<iframe src="/report.html" width="{width}" height="900" style="border:0"></iframe>
<script>onload = () => {{
  const page = document.querySelector("iframe").contentDocument.documentElement;
  document.title = "wide " + page.scrollWidth + " of " + page.clientWidth + ", charts " + page.querySelectorAll("svg").length;
}}</script>"""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str, list[str]]]:
    """A folder, where it is served, and what was asked for."""
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args, **options):
            super().__init__(*args, directory=str(tmp_path), **options)

        def log_request(self, code="-", size="-"):
            asked.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield tmp_path, f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


def browse(tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Chromium without a window, in a profile of its own, with the page's console on stderr."""
    assert CHROMIUM is not None, "install Chromium: apt-get install chromium"
    words = (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        f"--user-data-dir={tmp_path / 'profile'}",
        *words,
    )
    command = [CHROMIUM, "--enable-logging=stderr", "--v=0", "--virtual-time-budget=4000", *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_is_silent_and_asks_for_nothing(served, width: int):
    """A phone scrolled sideways, an error in the console, a font from elsewhere: none of them shows in the file itself."""
    folder, url, asked = served
    text = rendered("a_model_with_a_name_that_is_quite_long_and_has_nowhere_to_break_2026-11-22_run-17")
    (folder / PAGE).write_text(text)
    (folder / "probe.html").write_text(PROBE.format(width=width))
    done = browse(folder, "--window-size=1400,1000", "--dump-dom", f"{url}/probe.html")
    assert f"<title>wide {width} of {width}, charts 4</title>" in done.stdout, done.stdout[:300]
    assert "CONSOLE" not in done.stderr, done.stderr
    assert asked == ["/probe.html", "/report.html"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_follows_the_reader_s_colours(served, scheme: str):
    from PIL import Image

    folder, url, _ = served
    (folder / PAGE).write_text(rendered())
    shot = folder / f"{scheme}.png"
    dark = ("--blink-settings=preferredColorScheme=0",) if scheme == "dark" else ("--blink-settings=preferredColorScheme=1",)
    browse(folder, *dark, "--window-size=1280,900", f"--screenshot={shot}", f"{url}/{PAGE}")
    corner = Image.open(shot).convert("RGB").getpixel((2, 2))
    assert corner == ((255, 255, 255) if scheme == "light" else (0x0D, 0x11, 0x17))
