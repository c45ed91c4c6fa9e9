"""What the site says of objectives, made of the objectives and their tests when it is built: nothing of it is in git.

One page per family, pictures, and the tables of objectives.md and evidence.md in the place of their markers. Links to
``objectives.md#dpo`` lead to the page of dpo's family.
"""

import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

sys.path.append(str(Path(__file__).parents[2]))

from prefuse.catalogue import catalogue
from tests import evidence
from tools import objectives_page as pages

SECTION = "Objectives"
TABLES = {
    "table of objectives": pages.contents,
    "table of variants": pages.meanings,
    "table of evidence": evidence.markdown,
}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the families into the navigation."""
    section = next(part[SECTION] for part in config.nav if SECTION in part)
    place = section.index("objectives.md") + 1
    section[place:place] = [{"Families": [pages.path_of(family) for family in pages.families()]}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Write pages and draw pictures."""
    for family in pages.families():
        files.append(File.generated(config, pages.path_of(family), content=pages.page(family)))
    for found in filter(pages.has_picture, catalogue()):
        files.append(File.generated(config, pages.picture_of(found), content=pages.picture(found)))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Fill in the tables, lead links to the families."""
    for name, table in TABLES.items():
        marker = f"<!-- {name} -->"
        if marker in markdown:
            markdown = markdown.replace(marker, table())
    return pages.linked(markdown)
