"""Links of pages to files of the repository beside docs/: images are copied into the site, all else gets its address on GitHub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

BESIDE = re.compile(r"(!?)(\[[^\]]*\]\()\.\./([^)#\s]+)")


def on_files(files: Files, config: Any) -> Files:
    """Add the images beside docs/ that pages show."""
    root = Path(config.config_file_path).parent
    for page in list(files.documentation_pages()):
        for image, _, path in BESIDE.findall(Path(page.abs_src_path or "").read_text(encoding="utf-8")):
            if image and f"repository/{path}" not in files.src_uris:
                files.append(File.generated(config, f"repository/{path}", abs_src_path=str(root / path)))
    return files


def on_page_markdown(markdown: str, config: Any, **_: Any) -> str:
    """Point links to where the site has the file, or GitHub."""
    return BESIDE.sub(lambda m: f"{m[1]}{m[2]}{'repository' if m[1] else config.repo_url + '/blob/main'}/{m[3]}", markdown)
