"""A picture of every objective of log-ratios on the catalogue's page: drawn when the site is built, not kept in git."""

import re
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.append(str(Path(__file__).parents[2]))

from prefuse.catalogue import catalogue
from tools.objectives_page import has_picture, picture

PAGE = "objectives.md"
FORMULA = r"^\$\$\n.*?\n\$\$\n"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Draw them."""
    for found in filter(has_picture, catalogue()):
        files.append(File.generated(config, f"objectives/{found.name}.svg", content=picture(found)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Put each below its objective's formula."""
    if page.file.src_uri != PAGE:
        return markdown
    for found in filter(has_picture, catalogue()):
        image = f"\n![loss and gradient weight against the margin](objectives/{found.name}.svg)\n"
        section = re.compile(rf"(^### {found.name}$.*?{FORMULA})", re.MULTILINE | re.DOTALL)
        markdown = section.sub(lambda match, image=image: match[1] + image, markdown, count=1)
    return markdown
