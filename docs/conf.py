"""Sphinx: the pages of this folder, and a reference written from the code at every build."""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
# AiiDA makes its configuration folder on import: here, never the user's own.
_AIIDA_PATH = Path(tempfile.mkdtemp(prefix="aiida-mlip-docs-"))
(_AIIDA_PATH / ".aiida").mkdir()
os.environ["AIIDA_PATH"] = str(_AIIDA_PATH)
atexit.register(shutil.rmtree, _AIIDA_PATH, ignore_errors=True)
logging.getLogger("alembic").setLevel(logging.WARNING)

project = "aiida-mlip-workchains"
author = "The aiida-mlip-workchains developers"
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = project
html_copy_source = False
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4
nitpicky = True


def setup(app: Any) -> None:
    """Write the reference before the pages are read."""
    import reference_pages

    app.connect("builder-inited", lambda app: reference_pages.write(Path(app.srcdir) / "reference"))
