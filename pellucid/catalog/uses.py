"""What somebody wants to do with a model, from words, numbers and a place. No torch here."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

from pellucid.catalog.licenses import AREAS, BASE, TERRITORIES
from pellucid.errors import BadRequest, did_you_mean, nearest

_WORDS = {
    "commercial": ("commercially", "sell", "sold", "selling", "sale", "product", "products", "business", "paid", "internal", "company",
                   "revenue", "production"),
    "hosting": ("api", "host", "hosted", "service", "saas", "serve", "serving", "server", "website", "online"),
    "research": ("academic", "noncommercial", "non-commercial", "personal", "hobby", "evaluation", "study", "experiment"),
    "distribute": ("distribution", "redistribute", "publish", "published", "share", "release", "upload", "weights"),
    "modify": ("finetune", "fine-tune", "finetuning", "fine-tuning", "tune", "tuning", "lora", "qlora", "merge", "merging", "quantize",
               "convert", "derivative"),
    "train": ("training", "distill", "distillation", "synthetic"),
    "medical": ("medicine", "health", "clinical", "diagnosis", "patients"),
    "law-enforcement": ("police", "justice", "court", "courts", "asylum", "immigration"),
    "military": ("war", "warfare", "nuclear", "espionage"),
    "automated-decisions": ("decisions", "scoring-people"),
    "critical-infrastructure": ("infrastructure",),
    "unlicensed-practice": ("unlicensed",),
    "biometrics": ("biometric", "faces"),
    "fraud": ("scam", "scams", "spam", "phishing"),
    "harassment": ("bullying", "defamation"),
    "infringement": ("copyright", "piracy"),
    "self-harm": ("suicide",),
    "violence": ("terrorism",),
    "malware": ("hacking", "ransomware"),
    "sexual": ("adult", "pornography"),
    "minors": ("children",),
}
_SAID = {word: use for use, words in _WORDS.items() for word in (use, *words)} | {use: use for use in (*BASE, *AREAS)}
_SILENT = {"a", "an", "and", "advice", "another", "as", "behind", "by", "for", "in", "it", "its", "model", "models", "my", "of", "on", "or", "our", "output",
           "outputs", "own", "public", "the", "to", "use", "used", "with", "your"}
_EU = {"AT", "BE", "BG", "HR", "CY", "CZ", "DK", "EE", "FI", "FR", "DE", "GR", "HU", "IE", "IT", "LV", "LT", "LU", "MT", "NL", "PL", "PT", "RO", "SK", "SI",
       "ES", "SE"}
_UNITS = {"K": 10**3, "M": 10**6, "B": 10**9}


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """A declared use. Numbers are of people (a month; daily_users a day) and US dollars (a year; monthly_revenue a month); None where nobody said.

    into: licenses of the model that learns from outputs, for terms that spare a license's own derivatives.
    """

    uses: frozenset[str]
    users: int | None = None
    users_at_release: int | None = None
    daily_users: int | None = None
    revenue: int | None = None
    monthly_revenue: int | None = None
    territory: str | None = None
    into: tuple[str, ...] = ()

    @property
    def shown(self) -> str:
        """In words, such as `commercial, hosting; users 2,000,000,000`."""
        told = [f"{f.name.replace('_', ' ')} {getattr(self, f.name):,}" for f in fields(self)[1:6] if getattr(self, f.name) is not None]
        order = (*BASE, *AREAS)
        return "; ".join([", ".join(sorted(self.uses, key=order.index)) or "nothing said", *told, *([self.territory] if self.territory else [])])


def words(said: str) -> frozenset[str]:
    """The uses in a phrase: "commercial api" is commercial and hosting. Raises BadRequest for a word nobody here knows, with the nearest."""
    found = set()
    for word in said.lower().replace(",", " ").replace("/", " ").split():
        if word in _SAID:
            found.add(_SAID[word])
        elif word not in _SILENT:
            near = nearest(word, _SAID)
            raise BadRequest(f"--use {said!r}: {word!r} is no use that is known.{did_you_mean(near)} (known: {', '.join((*BASE, *AREAS))})", field="use")
    if not found:
        raise BadRequest(f"--use {said!r} names no use (known: {', '.join((*BASE, *AREAS))})", field="use")
    return frozenset(found)


def number(said: str | int | float | None, option: str) -> int | None:
    """A count of people or dollars: 2e9, 800M, 1_000_000. Raises BadRequest for a unit nobody understands."""
    if said is None:
        return None
    text = str(said).strip().replace(",", "").replace("_", "")
    unit = _UNITS.get(text[-1:].upper(), 1)
    try:
        value = float(text[:-1] if unit > 1 else text) * unit
    except ValueError:
        value = -1
    if not 0 <= value < 1e18:
        raise BadRequest(f"{option} {said}: a number of 0 or more was expected, such as 2e9, 800M or 1000000 (units: K, M, B)", field=option.strip("-"))
    return round(value)


def territory(said: str | None) -> str | None:
    """EU for any of its countries, else a code that licenses speak of, else `other`. Raises BadRequest for what is no code of two letters."""
    if said is None:
        return None
    code = said.upper()
    if len(code) != 2 or not code.isalpha():
        raise BadRequest(f"--territory {said!r}: a country's two letters were expected, such as DE, GB or US, or EU", field="territory")
    code = {"UK": "GB"}.get(code, code)
    return "EU" if code in _EU else code if code in TERRITORIES else "other"


def use_of(said: Iterable[str], **numbers: int | None) -> Use:
    """A Use of phrases and numbers."""
    return Use(uses=frozenset().union(*(words(phrase) for phrase in said)), **numbers)  # type: ignore[arg-type]
