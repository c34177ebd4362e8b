"""Sentences and noun phrases of abstracts, by rules and word lists: no parser, no tagger, nothing to download.

The rules are made for precision: what they are unsure of they refuse. Spans are characters, (start, stop).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

Span = tuple[int, int]
MOST_WORDS = 7
LABEL = re.compile(r"(?:^|(?<=[.?!)] ))[A-Z][A-Z /&,'()-]{3,}: ")
END = re.compile(r"[.?!][\"')\]]*(?=\s+[\"'(\[]?[A-Z0-9•])")
ABBREVIATED = set("e.g i.e vs cf al fig figs approx dr mr mrs ms prof st no nos ca etc resp spp sp var ref eq".split())
WORD = re.compile(r"\w[\w'’/-]*")
DETERMINERS = set("the a an both".split())
PREPOSITIONS = set("of in on at to for from with by after before during within among across under over per".split())
CONJUNCTIONS = set("and or but while whereas although though because since as".split())

# A sentence that contains one of these plans, asks, or supposes.
PLANNED = re.compile(
    r"\b(?:whether|if|hypothes\w*|assum\w*|suppos\w*|speculat\w*|aim\w*|purpose|objectives?|designed|describe|"
    r"investigated?|examine|assess|evaluate|determine|explore|to test|tests the|identify|analy[sz]e|compare|clarify|"
    r"how|why|suggested to|questioned|unclear|unknown|uncertain|controvers\w*|debat\w*|believed|thought|considered)\b",
    re.IGNORECASE,
)
# A clause that contains one of these is negated, hedged, or of the other sign.
UNSURE = re.compile(
    r"\b(?:not|no(?!-)|nor|neither|never|none|cannot|without|lack\w*|fail(?:s|ed)|failure to|may|might|can|could|would|"
    r"should|must|suspect\w*|possibl[ey]|potential\w*|perhaps|probabl[ey]|likely|unlikely|seem\w*|appear(?:s|ed)?|"
    r"tend(?:s|ed)?|tendency to|trends?|inverse\w*|negatively|weak\w*|little|unrelated|rather|instead|hardly|rarely|"
    r"non-?significant\w*|(?:good|favou?rable|protective|poor|negative)(?: [\w-]+){0,3} (?:predictors?|determinants?|"
    r"factors?|associations?|correlations?|relationships?|links?))\b",
    re.IGNORECASE,
)
CLAUSE = re.compile(r"; |, (?:but|whereas|while|although|however|and) ")
# What still denies a statement after its last phrase, in the same clause: "… was not confirmed".
DENIED = re.compile(
    r"(?: \([^()]*\)|(?! (?:but|whereas|while|although|though)\b)[^,;:()])*? "
    r"(?:not|no longer|never|weak|non-?significant)\b",
    re.IGNORECASE,
)
# What no phrase contains: pointing words, clause words, finite verbs, and people.
FOREIGN = set(
    "it its they them their this that these those it's he she his her we us our i you one ones who which whom whose "
    "what where there here such same other others another each all any some many several most more fewer either when "
    "then than thus therefore also so yet however respectively was were is are be been being am had has have having "
    "did do does will shall found showed shows show demonstrated suggest suggests indicate indicates reported "
    "observed revealed remained became occurred compared using used including include includes included followed "
    "adjusted between versus vs according regarding due associated correlated related linked predicted predicts "
    "caused about above below first second two three four five six seven eight nine ten former latter following "
    "independent independently identified evaluated measured examined tested studied determined assessed contributing "
    "underwent needed required developed alone".split()
)
PEOPLE = set("patients patient participants subjects individuals people persons sexes".split())
OPENINGS = {"", ",", ";", ":", "–", "•", "that", "whereas", "while", "although", "because", "since", "but"}
# Words that a phrase before them needs: it would be cut in the middle.
LEFT_OPEN = set("to between than versus vs other these their those its".split())
# Words that say nothing alone.
GENERIC = set(
    "factor factors outcome outcomes result results effect effects finding findings change changes increase increases "
    "decrease decreases reduction difference differences level levels number numbers presence risk risks rate rates "
    "use group groups variable variables parameter parameters characteristic characteristics measure measures value "
    "values score scores data study studies model models analysis analyses type types degree extent amount proportion "
    "percentage prevalence incidence frequency development feature features condition conditions case cases "
    "association associations relationship cause causes reason reasons predictor predictors problem problems issue "
    "issues aspect aspects status time period year years month months week weeks day days higher high lower low "
    "greater great larger large smaller small better best worse worst poor poorer good longer shorter increased "
    "decreased reduced elevated improved significant important main major certain specific different various common "
    "positive overall total new early late odds likelihood probability severity size treatment treatments therapy "
    "intervention procedure technique method methods approach exposure quality improvement performance increasing "
    "decreasing strong progression response event events index mean baseline primary secondary endpoint hospital "
    "population sample cohort disease diseases symptoms diagnosis care experience women men children adults".split()
)
# Nouns that ask for the preposition after them, which then stays inside the phrase.
TIES = re.compile(
    r"\b(?:risks?|need|preference|surgery|screening|desire|therapy|appropriate) for$|"
    r"\b(?:response|exposure|resistance|adherence|access|attitudes?|damage|injury|admission|progression|return|time|"
    r"attachment|sensitivity|susceptibility|predisposition|conversion|tolerance|trauma|failure|ability) to$|"
    r"\b(?:infection|satisfaction|compliance|contact|co-?infection) with$|"
    r"\b(?:effects?|impact|influence|dependence) on$|\b(?:protection|violence) against$|"
    r"\b(?:interest|participation|involvement|increases?|decreases?|reductions?|improvements?|changes?|decline|rise|"
    r"differences?|variations?|gain|deficits?|impairments?|delays?) in$",
    re.IGNORECASE,
)
ADJECTIVAL = re.compile(r"(?:al|ive|ous|ary|ic|ed|ing|ly|able|ible|less|ful|er|ior|ant|ent|-free|-based)$")
NOUNS = set(
    "survival hospital trial referral arrival interval arousal withdrawal removal renewal denial retrieval signal "
    "bowel refusal disposal clinic traffic panic antibiotic objective relative motive narrative incentive need feed "
    "speed smoking drinking breastfeeding feeding bleeding suffering screening functioning ageing aging training "
    "learning swelling vomiting imaging coping bullying parenting hearing wellbeing well-being snoring scarring "
    "staging counselling counseling housing timing cycling clotting reading cancer fever ulcer liver disorder power "
    "fiber fibre transfer water gender carrier barrier danger anger layer outlier career marker biomarker tumor "
    "tumour fracture early family anomaly labor labour bladder shoulder finger behavior behaviour infant implant "
    "content accident agent adolescent event parent patient anticoagulant transplant".split()
)


def sentences(text: str) -> Iterator[Span]:
    """Spans of the sentences of an abstract, section labels ("RESULTS: ") left out.

    A full stop ends no sentence after an abbreviation or a single capital. Written out here, because splitters that
    know these abbreviations are unmaintained or download their models.
    """
    ends = (match for match in END.finditer(text) if not _is_abbreviated(text[: match.start()]))
    for start, stop in pairwise(sorted({0, *(match.end() for match in ends), len(text)})):
        edges = [start, *(edge for label in LABEL.finditer(text, start, stop) for edge in label.span()), stop]
        for begin, end in zip(edges[::2], edges[1::2], strict=True):
            inside = text[begin:end].strip()
            if inside:
                begin = text.index(inside, begin)
                yield begin, begin + len(inside)


def phrase_after(text: str, start: int, *, whole: bool = False) -> Span | None:
    """The noun phrase that begins at `start`, without its article, cut where its clause ends; None when unsure.

    A `whole` one is refused where anything but the end of the sentence or a bracket cuts it.
    """
    kept, cut = [], ""
    for word in WORD.finditer(text, start):
        name = word[0].lower()
        if text[kept[-1].end() if kept else start : word.start()] != (" " if kept else ""):
            break
        tied = name == "of" or TIES.search(text[start : word.end()])
        if name in FOREIGN | PEOPLE | CONJUNCTIONS or (name in PREPOSITIONS and not tied):
            cut = name
            break
        kept.append(word)
    if kept and cut in PEOPLE and kept[-1][0].lower() not in PREPOSITIONS | DETERMINERS:  # "factor for NPC patients"
        return None
    while kept and kept[-1][0].lower() in PREPOSITIONS | DETERMINERS:  # "survival of | these patients"
        kept.pop()
    if not kept or cut in LEFT_OPEN or (whole and not re.match(r"\s*[.;([]|$", text[kept[-1].end() :])):
        return None
    adjectival = ADJECTIVAL.search(kept[-1][0]) and not _is_noun(kept[-1][0])
    return None if adjectival else _accepted(kept)


def phrase_before(text: str, stop: int, *, singular: bool) -> Span | None:
    """The noun phrase that ends at `stop` and begins its clause, without its article; None when unsure.

    A bracket after it is passed over. Of a list it is the last member. After "and" without a comma it is only taken
    when the verb is not `singular` and the first member begins the clause and holds no preposition, for otherwise "and"
    may join something inside.
    """
    kept, before = _backwards(text, stop)
    if not kept or any(word[0].lower() in PEOPLE for word in kept):
        return None
    start = kept[0].start()
    if before in {"and", "or"}:
        joint = text[:start].rstrip().removesuffix(before).rstrip()
        if re.search(r"\b(?:between|both|combin\w+|interact\w+)\b", text[:start]):
            return None
        if joint.endswith("-"):  # "pre- and | postoperative pain"
            return None
        if joint[-1:] not in {",", ")"}:
            first, opening = _backwards(text, len(joint))
            if singular or not first or opening not in OPENINGS or PREPOSITIONS & {word[0].lower() for word in first}:
                return None
    elif before not in OPENINGS:
        return None
    return _accepted(kept)


def is_unsure(sentence: str, stop: int) -> bool:
    """Whether what is said up to `stop` is asked, planned, hedged, or of the other sign, or negated there or later."""
    begin = max((match.end() for match in CLAUSE.finditer(sentence, 0, stop)), default=0)
    if sentence.endswith("?") or DENIED.match(sentence, stop):
        return True
    return bool(PLANNED.search(sentence[:stop]) or UNSURE.search(sentence[begin:stop]))


def looks_plural(phrase: str) -> bool:
    """Whether the head of a phrase, the last word before its first preposition, ends like a plural."""
    words = phrase.split()
    head = next((i for i, word in enumerate(words) if word in PREPOSITIONS), len(words))
    return bool(
        re.search(r"(?<![siu'])s$|[^A-Z]ses$|criteria$|data$|phenomena$|women$|men$|children$", words[head - 1])
    )


def _backwards(text: str, stop: int) -> tuple[list[re.Match], str]:
    """Words back from `stop` to what ends a phrase, and that: a word, a punctuation mark, or "" at the beginning."""
    tail = re.search(r"(?: \([^()]*\))?\s*$", text[:stop]).start()
    kept: list[re.Match] = []
    for word in reversed(list(WORD.finditer(text, 0, tail))):
        between = text[word.end() : kept[0].start() if kept else tail]
        if between != (" " if kept else ""):
            return kept, between.strip()[:1] or between
        if word[0].lower() in FOREIGN | CONJUNCTIONS:
            return kept, word[0].lower()
        kept.insert(0, word)
    return kept, text[: kept[0].start()].strip()[-1:] if kept else ""


def _accepted(words: list[re.Match]) -> Span | None:
    """The span of words that make a phrase by themselves: neither too long, nor numbers, nor without content."""
    while words and (words[0][0].lower() in DETERMINERS or (words[0][0].endswith("ly") and not _is_noun(words[0][0]))):
        words = words[1:]  # "a significantly | higher risk of stroke"
    names = [word[0].lower() for word in words]
    if not 1 <= len(names) <= MOST_WORDS or names[0] in PREPOSITIONS or names[-1] in PREPOSITIONS | DETERMINERS:
        return None
    if names[-1].endswith("-"):  # "pre- | and postoperative pain"
        return None
    if any(name.isdigit() for name in names) or all(name in GENERIC | PREPOSITIONS | DETERMINERS for name in names):
        return None
    if len("".join(names)) < 3:
        return None
    return words[0].start(), words[-1].end()


def _is_noun(word: str) -> bool:
    return word.lower() in NOUNS or word.endswith("ment")


def _is_abbreviated(before: str) -> bool:
    word = before.rsplit(None, 1)[-1].lstrip("([\"'") if before.split() else ""
    return word.lower() in ABBREVIATED or bool(re.fullmatch(r"(?:[A-Z]\.)*[A-Z]", word))
