"""Reading XML that somebody else wrote: bounded, without entities and without anything a document type could bring in.

Belongs here: text to a small tree. Does not belong here: what the elements mean (the source modules).
A bare `<!DOCTYPE name>` is accepted (every Sonic Visualiser file has one); with an internal subset or an address it is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import DefusedXMLParser, ParseError

from beatsight_assets.errors import InputError
from beatsight_assets.store import read_bytes

MAX_BYTES = 4_000_000  # the annotations of IDMT-SMT-Drums have 20 kB
MAX_DEPTH = 20  # design/reliability.md section 6, as for YAML


@dataclass
class Element:
    """An element: name, attributes, children, and its own text without that of its children."""

    tag: str
    attributes: dict[str, str]
    children: list[Element] = field(default_factory=list)
    text: str = ""

    def find_all(self, *path: str) -> Iterator[Element]:
        """Elements at a path of names below this one, in document order."""
        for child in self.children:
            if child.tag == path[0]:
                yield from child.find_all(*path[1:]) if len(path) > 1 else (child,)

    def first_text(self, tag: str) -> str:
        """Text of the first child of that name without surrounding blanks; empty when there is none."""
        return next((child.text.strip() for child in self.find_all(tag)), "")


class _Builder:
    """Target of the parser: the tree, no deeper than `MAX_DEPTH`."""

    def __init__(self) -> None:
        self.root = Element("", {})
        self.open = [self.root]

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        if len(self.open) > MAX_DEPTH:
            raise InputError(f"nested deeper than {MAX_DEPTH} levels", code="bad-metadata")
        element = Element(tag, dict(attributes))
        self.open[-1].children.append(element)
        self.open.append(element)

    def end(self, tag: str) -> None:
        self.open.pop()

    def data(self, text: str) -> None:
        self.open[-1].text += text

    def close(self) -> Element:
        return self.root.children[0]


class _Parser(DefusedXMLParser):  # type: ignore[misc]  # defusedxml has no types
    def defused_start_doctype_decl(self, name: Any, sysid: Any, pubid: Any, has_internal_subset: Any) -> None:
        if sysid or pubid or has_internal_subset:
            raise InputError("a document type with declarations or an address is refused", code="bad-metadata")


def read_xml(path: Path, *, root: str, name: str) -> Element:
    """Root element of an XML file.

    Parameters
    ----------
    root : name the root element must have
    name : how errors call the file

    Raises
    ------
    InputError `bad-metadata` : not well-formed, another root, deeper than 20 levels, entities, a document type that is more than a name;
        and those of `store.read_bytes` (`resource-limit` above 4 MB)
    """
    content = read_bytes(path, max_bytes=MAX_BYTES)
    try:
        parser = _Parser(target=_Builder(), forbid_dtd=True, forbid_entities=True, forbid_external=True)
        parser.feed(content)
        found: Element = parser.close()
    except InputError as error:
        raise InputError(error.message, code=error.code, where=name) from error
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:
        reason = str(error) if isinstance(error, ParseError) else type(error).__name__
        raise InputError(f"not XML that is read here: {reason}", code="bad-metadata", where=name) from error
    if found.tag != root:
        raise InputError(f"the root element is {found.tag[:80]!r}, not {root!r}", code="bad-metadata", where=name)
    return found
