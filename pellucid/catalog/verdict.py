"""Whether a use is allowed, by every license in a lineage: what forbids it, what leaves it open, and what has to be done. No torch here.

Nothing is allowed that no license allows by name, and nothing is allowed by what is not known. This is not legal advice.
"""
from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from pellucid.catalog import licenses
from pellucid.catalog.licenses import ALWAYS, AREAS, License, Term
from pellucid.catalog.lineage import Node, walk
from pellucid.catalog.uses import Use

ADVICE = "This is not legal advice: it reads license texts in words of its own, and names the clause so that you can read it there."
ANSWERS = ("not allowed", "unknown", "allowed with duties", "allowed")
_OPTIONS = {"users_at_release": "--users-at-release", "users": "--users", "daily_users": "--daily-users", "revenue": "--revenue",
            "monthly_revenue": "--monthly-revenue"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Why: `does` is allows, forbids, unclear or asks (for a fact that was not given). path: from the model that was asked about to whose license it is."""

    does: str
    says: str
    license: str | None
    clause: str | None
    path: tuple[str, ...]
    permission: str | None = None

    @property
    def shown(self) -> str:
        where = " ".join(each for each in (self.license, self.clause) if each)
        return f"{self.says}{f' [{where}]' if where else ''}{f' · from {self.path[-1]}' if len(self.path) > 1 else ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """answer: one of ANSWERS. reasons: what decided it first. duties: what has to be done. conflicts: licenses that cannot all be kept, with the path."""

    answer: str
    use: Use
    reasons: tuple[Reason, ...]
    duties: tuple[Reason, ...]
    conflicts: tuple[str, ...]

    def plain(self) -> dict[str, object]:
        """As JSON holds it."""
        return {"answer": self.answer, "use": self.use.shown, "reasons": [dataclasses.asdict(each) for each in self.reasons],
                "duties": [dataclasses.asdict(each) for each in self.duties], "conflicts": list(self.conflicts), "advice": ADVICE}


def judge(node: Node, use: Use) -> Verdict:
    """The answer of all licenses in the tree together; the strictest counts."""
    found = [reason for each, path, role in walk(node) for reason in _reasons(node, each, path, role, use)]
    reasons = list(dict.fromkeys(reason for reason in found if reason.does != "demands"))
    duties = tuple(dict.fromkeys(reason for reason in found if reason.does == "demands"))
    stops = [reason for reason in reasons if reason.does == "forbids"]
    opens = [reason for reason in reasons if reason.does in ("unclear", "asks")]
    answer = "not allowed" if stops else "unknown" if opens else "allowed with duties" if duties else "allowed"
    return Verdict(answer=answer, use=use, reasons=(*stops, *opens, *(each for each in reasons if each.does == "allows")), duties=duties,
                   conflicts=conflicts(node))


def result_license(node: Node) -> str | None:
    """The license of what is made from a tree: every license that weights and data bring, joined by AND as SPDX joins them; None where one is not known."""
    told: list[str | None] = [id for each, _, role in walk(node) if role != "outputs" for id in each.licenses]
    if any(id is None or licenses.find(id) is None for id in told):
        return None
    return " AND ".join(sorted({id for id in told if id is not None}))


def conflicts(node: Node) -> tuple[str, ...]:
    """Sentences: sources that contradict each other, share-alike beside what it cannot share with, and a license looser than what it stands on."""
    found = [each.contradiction for each, _, _ in walk(node) if each.contradiction]
    told = [(license, path) for each, path, _ in walk(node) for id in each.licenses if id and (license := licenses.find(id))]
    for license, path in told:
        for other, its in told:
            if license.share_alike and other.id != license.id and not other.permissive and (not other.share_alike or license.id < other.id):
                found.append(f"{license.id} of {way(path)} has derivatives stay under it alone, and {other.id} of {way(its)} adds limits of its own")
    top = next((license for id in node.licenses if id and (license := licenses.find(id))), None)
    for license, path in told:
        firm = [term for term in license.terms if term.does in ("forbids", "unclear") and not term.over and not term.where and not term.together]
        limits = {use for term in firm for use in term.uses if use not in AREAS}
        if top is not None and top.permissive and limits and len(path) > 1:
            found.append(f"{top.id} of {node.name} allows what {license.id} of {way(path)} does not: {', '.join(sorted(limits))}")
    return tuple(dict.fromkeys(found))


def way(path: tuple[str, ...]) -> str:
    return " <- ".join(path)


def _reasons(top: Node, node: Node, path: tuple[str, ...], role: str, use: Use) -> Iterator[Reason]:
    if role == "outputs":  # its outputs were learned by what stands above it: that had to be allowed, whatever is done now
        use = dataclasses.replace(use, uses=frozenset({"train"}) | (use.uses & {"research", "commercial"}), into=_weights(top))
    for id in node.licenses:
        license = licenses.find(id) if id else None
        if license is None:
            said = f"the license of {node.name} is not known" if id is None else f"nobody here knows the license {id!r} of {node.name}"
            yield Reason(does="unclear", says=said, license=id, clause=None, path=path)
        else:
            yield from _of_license(license, node, path, use)


def _weights(top: Node) -> tuple[str, ...]:
    return tuple(id for each, _, role in walk(top) if role == "weights" for id in each.licenses if id)


def _of_license(license: License, node: Node, path: tuple[str, ...], use: Use) -> Iterator[Reason]:
    def reason(does: str, says: str, term: Term | None = None) -> Reason:
        return Reason(does=does, says=says, license=license.id, clause=term.clause if term else None, path=path, permission=term.permission if term else None)

    allowed = {each: term for term in license.terms if term.does == "allows" for each in term.uses}
    for each in sorted(use.uses):
        if (each in AREAS and "commercial" in allowed) or _spoken(license, each, node, use):
            continue
        if each not in allowed:
            yield reason("unclear", f"{license.id} does not allow {each} by name")
        else:
            yield reason("allows", f"{each}: {allowed[each].says}", allowed[each])
    for term in license.terms:
        if term.does == "allows" or term.spares in use.into:
            continue
        if not _speaks(term, use):
            if term.does == "forbids" and set(term.uses) <= set(AREAS):
                yield reason("demands", f"never for {', '.join(term.uses)}: {term.says}", term)
            continue
        bound = _binds(term, license, node, use)
        if bound is True:
            yield reason(term.does, term.says, term)
        elif bound is not False:
            yield reason("asks" if term.does != "demands" else "demands", f"{term.says}: {bound}", term)


def _spoken(license: License, each: str, node: Node, use: Use) -> bool:
    """Whether a term that binds forbids this use or leaves it open, so that nothing need allow it."""
    return any(term.does in ("forbids", "unclear") and each in term.uses and term.spares not in use.into and _speaks(term, use)
               and _binds(term, license, node, use) is True for term in license.terms)


def _speaks(term: Term, use: Use) -> bool:
    asked = ALWAYS in term.uses or bool(use.uses & set(term.uses))
    return asked and (term.together is None or term.together in use.uses) and (term.without is None or term.without not in use.uses)


def _binds(term: Term, license: License, node: Node, use: Use) -> bool | str:
    """Whether the limits of a term are passed; a sentence that asks for what has to be known to tell."""
    if term.kinds:
        if node.kinds is None:
            return f"of {', '.join(term.kinds)} models only, and whether {node.name} is one is not known"
        if not set(term.kinds) & set(node.kinds):
            return False
    if term.where:
        if use.territory is None:
            return f"say where you are: --territory {term.where[0]} or another"
        if use.territory not in term.where:
            return False
    for limit, most in term.over.items():
        value = getattr(use, limit)
        if value is None and limit == "users_at_release" and use.users is not None and use.users <= most:
            value = use.users  # who has fewer today is taken to have had no more then; --users-at-release says otherwise
        if value is None and limit == "daily_users" and use.users is not None and use.users < most:
            value = use.users  # nobody comes on a day who does not come in its month
        if value is None:
            when = f", in the month before {license.released}" if limit == "users_at_release" and license.released else ""
            return f"say how many{when}: {_OPTIONS[limit]} N"
        if value <= most:
            return False
    return True
